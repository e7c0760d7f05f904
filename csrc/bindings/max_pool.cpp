#include "kernels/max_pool.h"

#include <algorithm>
#include <tuple>

#include "bindings/arguments.h"

namespace vleak {
namespace {

std::tuple<Tensor, Tensor> call_max_pool(Tensor x, Sizes kernel, Sizes stride) {
  const Sizes size = sizes_of(x);
  const size_t axes = kernel.size();
  check((axes == 2 || axes == 3) && stride.size() == axes && size.size() == axes + 2, "axes do not match");
  PoolShape shape{size[0] * size[1], {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}};
  Sizes result = {size[0], size[1]};
  int64_t window = 1;
  for (size_t axis = 0; axis < axes; ++axis) {
    const size_t to = axis + 3 - axes;
    check(kernel[axis] > 0 && stride[axis] > 0 && kernel[axis] <= size[axis + 2], "bad kernel or stride");
    check(size[axis + 2] <= (int64_t{1} << 31) / std::max<int64_t>(1, window), "the window is too large");
    window *= kernel[axis];
    shape.input[to] = size[axis + 2];
    shape.kernel[to] = kernel[axis];
    shape.stride[to] = stride[axis];
    shape.output[to] = (size[axis + 2] - kernel[axis]) / stride[axis] + 1;
    result.push_back(shape.output[to]);
  }
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
