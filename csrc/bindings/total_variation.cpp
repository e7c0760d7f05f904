#include "kernels/total_variation.h"

#include <tuple>

#include "bindings/arguments.h"

namespace vleak {
namespace {

std::tuple<Tensor, Tensor> call_total_variation(Tensor x, double spatial, double temporal, bool isotropic,
                                                double smoothing) {
  const ClipSize size = clip_size(x);
  x = as_contiguous(x);
  Tensor value = new_contiguous(x, {size.trials}), gradient = new_contiguous(x);
  with_type(x, [&]<typename T>() {
    vleak::total_variation(x.const_data_ptr<T>(), size, TvSettings{spatial, temporal, smoothing, isotropic},
                           gradient.mutable_data_ptr<T>(), value.mutable_data_ptr<T>());
  });
  return {value, gradient};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("total_variation", TORCH_BOX(&vleak::call_total_variation));
}
