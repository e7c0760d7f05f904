#include "bindings/descend.h"

namespace vleak {
namespace {

void run(const DescendState& state, const StepSettings& step) {
  with_type(state.x, [&]<typename T>() {
    descend(state.trials<T>(), step, state.distance.const_data_ptr<T>(),
            state.objective.mutable_data_ptr<T>(), state.best.mutable_data_ptr<T>(),
            state.best_objective.mutable_data_ptr<T>());
  });
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("descend", TORCH_BOX(&vleak::call_descend<vleak::run>));
}
