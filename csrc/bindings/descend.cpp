#include "bindings/descend.h"

#include <tuple>

namespace vleak {
namespace {

std::tuple<Tensor, Tensor> call_descend(Tensor x, Tensor data_gradient, Tensor distance, Tensor m, Tensor v,
                                        Tensor best, Tensor best_objective, std::optional<Tensor> prior,
                                        Tensor settings, bool isotropic, double smoothing, std::string rule) {
  DescendState state(x, data_gradient, distance, m, v, best, best_objective, prior, settings);
  const StepSettings step = {*state.step_numbers(), isotropic, smoothing, rule_of(rule)};
  with_type(state.x, [&](auto zero) {
    using T = decltype(zero);
    vleak::descend(state.trials<T>(), step, state.distance.const_data_ptr<T>(),
                   state.objective.mutable_data_ptr<T>(), state.best.data<T>(),
                   state.best_objective.data<T>());
  });
  state.write_back();
  return {state.moved, state.objective};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) { library.impl("descend", TORCH_BOX(&vleak::call_descend)); }
