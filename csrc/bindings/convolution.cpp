#include "kernels/convolution.h"

#include "bindings/convolution_arguments.h"

namespace vleak {
namespace {

Tensor call_conv_output(std::vector<Tensor> xs, std::vector<Tensor> ws, std::optional<Tensor> bias,
                        Sizes stride, Sizes padding) {
  check_pairs(xs, ws);
  const ConvolutionShape shape = convolution_shape(sizes_of(xs[0]), sizes_of(ws[0]), stride, padding);
  ws = as_contiguous(ws);
  bias = checked(bias, xs[0], {shape.output[1]}, "bias");
  const Tensor y = new_contiguous(xs[0], without_added_axis(shape.output, xs[0].dim()));
  if (y.numel() == 0) return y;
  with_type(y, [&]<typename T>() {
    conv_output(views<T>(xs), pointers<T>(ws), pointer<T>(bias), shape, y.mutable_data_ptr<T>());
  });
  return y;
}

Tensor call_conv_input(std::vector<Tensor> dys, std::vector<Tensor> ws, Sizes input_shape, Sizes stride,
                       Sizes padding) {
  check_pairs(dys, ws);
  const ConvolutionShape shape = convolution_shape(input_shape, sizes_of(ws[0]), stride, padding);
  check(sizes_of(dys[0]) == without_added_axis(shape.output, input_shape.size()),
        "dys do not match input_shape");
  ws = as_contiguous(ws);
  const Tensor dx = new_contiguous(dys[0], input_shape);
  if (dx.numel() == 0) return dx;
  with_type(
      dx, [&]<typename T>() { conv_input(views<T>(dys), pointers<T>(ws), shape, dx.mutable_data_ptr<T>()); });
  return dx;
}

Tensor call_conv_weight(std::vector<Tensor> xs, std::vector<Tensor> dys, Sizes kernel, Sizes stride,
                        Sizes padding, bool depthwise, std::optional<Tensor> start) {
  check_pairs(xs, dys);
  const Tensor &x = xs[0], &dy = dys[0];
  check(x.dim() == dy.dim() && (x.dim() == 4 || x.dim() == 5), "axes do not match");
  check(!depthwise || x.size(1) == dy.size(1), "channels do not match");
  Sizes weight = {dy.size(1), depthwise ? 1 : x.size(1)};
  weight.insert(weight.end(), kernel.begin(), kernel.end());
  const ConvolutionShape shape = convolution_shape(sizes_of(x), weight, stride, padding);
  check(sizes_of(dy) == without_added_axis(shape.output, x.dim()), "dys do not match xs");
  start = checked(start, x, weight, "start");
  const Tensor dw = new_contiguous(x, weight);
  xs = as_contiguous(xs);
  dys = as_contiguous(dys);
  with_type(dw, [&]<typename T>() {
    conv_weight(pointers<T>(xs), pointers<T>(dys), pointer<T>(start), shape, dw.mutable_data_ptr<T>());
  });
  return dw;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("conv_output", TORCH_BOX(&vleak::call_conv_output));
  library.impl("conv_input", TORCH_BOX(&vleak::call_conv_input));
  library.impl("conv_weight", TORCH_BOX(&vleak::call_conv_weight));
}
