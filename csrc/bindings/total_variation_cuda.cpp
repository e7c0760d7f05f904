#include <tuple>

#include "bindings/cuda.h"

namespace vleak {
namespace {

std::tuple<Tensor, Tensor> call_total_variation(Tensor x, double spatial, double temporal, bool isotropic,
                                                double smoothing) {
  const ClipSize size = clip_size(x);
  const DeviceGuard guard(x.get_device_index());
  x = as_contiguous(x);
  Tensor value = new_contiguous(x, {size.trials}), gradient = new_contiguous(x);
  const Tensor partial = scratch_memory(x, cuda::plane_blocks(size) * sizeof(double));
  with_type(x, [&]<typename T>() {
    cuda::total_variation(x.const_data_ptr<T>(), size, TvSettings{spatial, temporal, smoothing, isotropic},
                          partial.mutable_data_ptr<double>(), gradient.mutable_data_ptr<T>(),
                          value.mutable_data_ptr<T>(), current_stream(x));
  });
  check_launch();
  return {value, gradient};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CUDA, library) {
  library.impl("total_variation", TORCH_BOX(&vleak::call_total_variation));
}
