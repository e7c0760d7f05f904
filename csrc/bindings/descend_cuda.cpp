#include <tuple>

#include "bindings/cuda.h"
#include "bindings/descend.h"

namespace vleak {
namespace {

std::tuple<Tensor, Tensor> call_descend(Tensor x, Tensor data_gradient, Tensor distance, Tensor m, Tensor v,
                                        Tensor best, Tensor best_objective, std::optional<Tensor> prior,
                                        Tensor settings, bool isotropic, double smoothing, std::string rule) {
  const DeviceGuard guard(x.get_device_index());
  DescendState state(x, data_gradient, distance, m, v, best, best_objective, prior, settings);
  const cuda::StepRow row = {state.step_numbers(), isotropic, smoothing, rule_of(rule)};
  const Tensor partial = scratch_memory(x, cuda::plane_blocks(state.size) * sizeof(double)),
               better = scratch_memory(x, state.size.trials);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    cuda::descend(state.trials<T>(), row, state.distance.const_data_ptr<T>(),
                  partial.mutable_data_ptr<double>(), static_cast<bool*>(better.mutable_data_ptr()),
                  state.objective.mutable_data_ptr<T>(), state.best.data<T>(), state.best_objective.data<T>(),
                  current_stream(x));
  });
  check_launch();
  state.write_back();
  return {state.moved, state.objective};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CUDA, library) { library.impl("descend", TORCH_BOX(&vleak::call_descend)); }
