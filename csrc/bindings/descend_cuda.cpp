#include "bindings/cuda.h"
#include "bindings/descend.h"

namespace vleak {
namespace {

void run(const DescendState& state, const StepSettings& step) {
  const DeviceGuard guard(state.x.get_device_index());
  const Tensor partial = scratch_memory(state.x, cuda::plane_blocks(state.size) * sizeof(double)),
               better = scratch_memory(state.x, state.size.trials);
  with_type(state.x, [&]<typename T>() {
    cuda::descend(state.trials<T>(), step, state.distance.const_data_ptr<T>(),
                  partial.mutable_data_ptr<double>(), static_cast<bool*>(better.mutable_data_ptr()),
                  state.objective.mutable_data_ptr<T>(), state.best.mutable_data_ptr<T>(),
                  state.best_objective.mutable_data_ptr<T>(), current_stream(state.x));
  });
  check_launch();
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CUDA, library) {
  library.impl("descend", TORCH_BOX(&vleak::call_descend<vleak::run>));
}
