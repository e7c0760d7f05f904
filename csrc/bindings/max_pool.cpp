#include "kernels/max_pool.h"

#include <tuple>

#include "bindings/convolution_arguments.h"

namespace vleak {
namespace {

std::tuple<Tensor, Tensor> call_max_pool(Tensor x, Sizes kernel, Sizes stride) {
  const Sizes size = sizes_of(x);
  const size_t axes = kernel.size();
  check((axes == 2 || axes == 3) && stride.size() == axes && size.size() == axes + 2, "axes do not match");
  PoolShape shape{size[0] * size[1],
                  spatial(Sizes(size.begin() + 2, size.end()), 1),
                  {},
                  spatial(kernel, 1),
                  spatial(stride, 1)};
  int64_t window = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t input = shape.input[axis], taps = shape.kernel[axis], step = shape.stride[axis];
    check(taps > 0 && step > 0 && taps <= input, "bad kernel or stride");
    check(input <= (int64_t{1} << 31) / std::max<int64_t>(1, window), "the window is too large");
    window *= taps;
    shape.output[axis] = (input - taps) / step + 1;
  }
  const auto& [frames, rows, columns] = shape.output;
  const Sizes result = without_added_axis({size[0], size[1], frames, rows, columns}, size.size());
  x = as_contiguous(x);
  const Tensor values = new_contiguous(x, result), places = new_contiguous(x, result, ScalarType::Long);
  with_type(x, [&]<typename T>() {
    max_pool(x.const_data_ptr<T>(), shape, values.mutable_data_ptr<T>(), places.mutable_data_ptr<int64_t>());
  });
  return {values, places};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) { library.impl("max_pool", TORCH_BOX(&vleak::call_max_pool)); }
