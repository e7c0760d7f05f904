#include "kernels/sparse_convolution.h"

#include <algorithm>

#include "bindings/convolution_arguments.h"

namespace vleak {
namespace {

// places: int64, contiguous, [clip, out, ...].
Places places_of(const Tensor& places, const ConvolutionShape& shape) {
  const Sizes sizes = sizes_of(places);
  check(places.scalar_type() == ScalarType::Long && sizes.size() >= 2, "expected int64 places");
  check(sizes[0] == shape.output[0] && sizes[1] == shape.output[1], "places do not match the output");
  const int64_t* data = places.const_data_ptr<int64_t>();
  const int64_t outputs = channel_size(shape.output), all = places.numel();
  const bool inside = std::all_of(data, data + all, [=](int64_t at) { return at >= 0 && at < outputs; });
  check(inside, "a place is no output");
  return {data, all / std::max<int64_t>(1, sizes[0] * sizes[1]), sizes.back()};
}

ConvolutionShape dense_shape(const Sizes& input, const Sizes& weight, const Sizes& stride,
                             const Sizes& padding) {
  const ConvolutionShape shape = convolution_shape(input, weight, stride, padding);
  check(!shape.depthwise, "channels do not match");
  return shape;
}

Tensor call_sparse_conv_output(std::vector<Tensor> xs, std::vector<Tensor> ws, std::optional<Tensor> bias,
                               Tensor places, Sizes stride, Sizes padding) {
  check_pairs(xs, ws);
  const ConvolutionShape shape = dense_shape(sizes_of(xs[0]), sizes_of(ws[0]), stride, padding);
  xs = as_contiguous(xs);
  ws = as_contiguous(ws);
  places = as_contiguous(places);
  bias = checked(bias, xs[0], {shape.output[1]}, "bias");
  const Places at = places_of(places, shape);
  const Tensor y = new_contiguous(xs[0], sizes_of(places));
  with_type(y, [&]<typename T>() {
    sparse_conv_output(pointers<T>(xs), pointers<T>(ws), pointer<T>(bias), shape, at,
                       y.mutable_data_ptr<T>());
  });
  return y;
}

Tensor call_sparse_conv_input(std::vector<Tensor> dys, std::vector<Tensor> ws, Tensor places,
                              Sizes input_shape, Sizes stride, Sizes padding) {
  check_pairs(dys, ws);
  const ConvolutionShape shape = dense_shape(input_shape, sizes_of(ws[0]), stride, padding);
  check(sizes_of(dys[0]) == sizes_of(places), "dys do not match places");
  dys = as_contiguous(dys);
  ws = as_contiguous(ws);
  places = as_contiguous(places);
  const Places at = places_of(places, shape);
  const Tensor dx = new_contiguous(dys[0], input_shape);
  with_type(dx, [&]<typename T>() {
    sparse_conv_input(pointers<T>(dys), pointers<T>(ws), shape, at, dx.mutable_data_ptr<T>());
  });
  return dx;
}

Tensor call_sparse_conv_weight(Tensor x, Tensor dy, Tensor places, Sizes kernel, Sizes stride,
                               Sizes padding) {
  check_kind(dy, x, "dy");
  check(dy.dim() >= 2 && sizes_of(dy) == sizes_of(places), "dy does not match places");
  Sizes weight = {dy.size(1), x.dim() > 1 ? x.size(1) : 0};
  weight.insert(weight.end(), kernel.begin(), kernel.end());
  const ConvolutionShape shape = dense_shape(sizes_of(x), weight, stride, padding);
  x = as_contiguous(x);
  dy = as_contiguous(dy);
  places = as_contiguous(places);
  const Places at = places_of(places, shape);
  const Tensor dw = new_contiguous(x, weight);
  with_type(dw, [&]<typename T>() {
    sparse_conv_weight(x.const_data_ptr<T>(), dy.const_data_ptr<T>(), shape, at, dw.mutable_data_ptr<T>());
  });
  return dw;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("sparse_conv_output", TORCH_BOX(&vleak::call_sparse_conv_output));
  library.impl("sparse_conv_input", TORCH_BOX(&vleak::call_sparse_conv_input));
  library.impl("sparse_conv_weight", TORCH_BOX(&vleak::call_sparse_conv_weight));
}
