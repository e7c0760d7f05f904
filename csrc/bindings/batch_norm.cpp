#include "kernels/batch_norm.h"

#include <tuple>

#include "bindings/arguments.h"

namespace vleak {
namespace {

ChannelShape channel_shape(const Tensor& x) {
  check(x.dim() >= 2 && x.size(1) > 0, "expected (clip, channel, ...)");
  return {x.size(0), x.size(1), x.numel() / std::max<int64_t>(1, x.size(0) * x.size(1))};
}

// What normalises the channels of x, with the memory that it points to.
struct Normals {
  Tensor mean, scale, weight;
  bool train;

  Normals(const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& weight, bool train)
      : mean(shaped(mean, {x.size(1)}, x, "mean")),
        scale(shaped(scale, {x.size(1)}, x, "scale")),
        weight(shaped(weight, {x.size(1)}, x, "weight")),
        train(train) {}

  template <typename T>
  Normal<T> of() const {
    return {mean.const_data_ptr<T>(), scale.const_data_ptr<T>(), weight.const_data_ptr<T>(), train};
  }
};

std::tuple<Tensor, Tensor> call_batch_statistics(Tensor x, double eps) {
  const ChannelShape shape = channel_shape(x);
  x = as_contiguous(x);
  const Tensor mean = new_contiguous(x, {shape.channels}), scale = new_contiguous(x, {shape.channels});
  with_type(x, [&]<typename T>() {
    batch_statistics(x.const_data_ptr<T>(), shape, eps, mean.mutable_data_ptr<T>(),
                     scale.mutable_data_ptr<T>());
  });
  return {mean, scale};
}

Tensor call_batch_norm(Tensor x, Tensor mean, Tensor scale, Tensor weight, Tensor bias) {
  const ChannelShape shape = channel_shape(x);
  const Normals normals(x, mean, scale, weight, false);
  bias = shaped(bias, {x.size(1)}, x, "bias");
  x = as_contiguous(x);
  const Tensor y = new_contiguous(x);
  with_type(x, [&]<typename T>() {
    batch_norm(x.const_data_ptr<T>(), normals.of<T>(), bias.const_data_ptr<T>(), shape,
               y.mutable_data_ptr<T>());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> call_batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor scale,
                                                            Tensor weight, bool train) {
  const ChannelShape shape = channel_shape(x);
  const Normals normals(x, mean, scale, weight, train);
  dy = alike(dy, x, "dy");
  x = as_contiguous(x);
  const Tensor dx = new_contiguous(x), dweight = new_contiguous(x, {shape.channels}),
               dbias = new_contiguous(x, {shape.channels});
  with_type(x, [&]<typename T>() {
    batch_norm_backward(dy.const_data_ptr<T>(), x.const_data_ptr<T>(), normals.of<T>(), shape,
                        dx.mutable_data_ptr<T>(), dweight.mutable_data_ptr<T>(), dbias.mutable_data_ptr<T>());
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> call_batch_norm_second(Tensor of_x, Tensor of_weight, Tensor of_bias,
                                                          Tensor dy, Tensor x, Tensor mean, Tensor scale,
                                                          Tensor weight, bool train) {
  const ChannelShape shape = channel_shape(x);
  const Normals normals(x, mean, scale, weight, train);
  of_x = alike(of_x, x, "of_x");
  of_weight = shaped(of_weight, {x.size(1)}, x, "of_weight");
  of_bias = shaped(of_bias, {x.size(1)}, x, "of_bias");
  dy = alike(dy, x, "dy");
  x = as_contiguous(x);
  const Tensor by_dy = new_contiguous(x), by_x = new_contiguous(x),
               by_weight = new_contiguous(x, {shape.channels});
  with_type(x, [&]<typename T>() {
    const Slopes<T> slopes{of_x.const_data_ptr<T>(), of_weight.const_data_ptr<T>(),
                           of_bias.const_data_ptr<T>()};
    batch_norm_second(slopes, dy.const_data_ptr<T>(), x.const_data_ptr<T>(), normals.of<T>(), shape,
                      by_dy.mutable_data_ptr<T>(), by_x.mutable_data_ptr<T>(),
                      by_weight.mutable_data_ptr<T>());
  });
  return {by_dy, by_x, by_weight};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("batch_statistics", TORCH_BOX(&vleak::call_batch_statistics));
  library.impl("batch_norm", TORCH_BOX(&vleak::call_batch_norm));
  library.impl("batch_norm_backward", TORCH_BOX(&vleak::call_batch_norm_backward));
  library.impl("batch_norm_second", TORCH_BOX(&vleak::call_batch_norm_second));
}
