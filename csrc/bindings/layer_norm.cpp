#include "kernels/layer_norm.h"

#include <algorithm>
#include <tuple>

#include "bindings/arguments.h"

namespace vleak {
namespace {

RowShape row_shape(const Tensor& x, const Tensor& weight) {
  check_kind(weight, x, "weight");
  const Sizes sizes = sizes_of(x), row = sizes_of(weight);
  check(row.size() <= sizes.size() && std::equal(row.rbegin(), row.rend(), sizes.rbegin()),
        "x does not consist of rows of the weight");
  check(weight.numel() > 0, "expected entries in a row");
  return {x.numel() / weight.numel(), weight.numel()};
}

// What normalises the rows of x, with the memory that it points to.
struct Normals {
  Tensor mean, scale, weight;

  Normals(const Tensor& x, const RowShape& shape, const Tensor& mean, const Tensor& scale,
          const Tensor& weight)
      : mean(shaped(mean, {shape.rows}, x, "mean")),
        scale(shaped(scale, {shape.rows}, x, "scale")),
        weight(as_contiguous(weight)) {}

  template <typename T>
  RowNormal<T> of() const {
    return {mean.const_data_ptr<T>(), scale.const_data_ptr<T>(), weight.const_data_ptr<T>()};
  }
};

std::tuple<Tensor, Tensor, Tensor> call_layer_norm(Tensor x, Tensor weight, Tensor bias, double eps) {
  const RowShape shape = row_shape(x, weight);
  weight = as_contiguous(weight);
  bias = alike(bias, weight, "bias");
  x = as_contiguous(x);
  const Tensor y = new_contiguous(x), mean = new_contiguous(x, {shape.rows}),
               scale = new_contiguous(x, {shape.rows});
  with_type(x, [&]<typename T>() {
    layer_norm(x.const_data_ptr<T>(), weight.const_data_ptr<T>(), bias.const_data_ptr<T>(), shape, eps,
               y.mutable_data_ptr<T>(), mean.mutable_data_ptr<T>(), scale.mutable_data_ptr<T>());
  });
  return {y, mean, scale};
}

std::tuple<Tensor, Tensor, Tensor> call_layer_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor scale,
                                                            Tensor weight) {
  const RowShape shape = row_shape(x, weight);
  const Normals normals(x, shape, mean, scale, weight);
  dy = alike(dy, x, "dy");
  x = as_contiguous(x);
  const Tensor dx = new_contiguous(x), dweight = new_contiguous(weight), dbias = new_contiguous(weight);
  with_type(x, [&]<typename T>() {
    layer_norm_backward(dy.const_data_ptr<T>(), x.const_data_ptr<T>(), normals.of<T>(), shape,
                        dx.mutable_data_ptr<T>(), dweight.mutable_data_ptr<T>(), dbias.mutable_data_ptr<T>());
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> call_layer_norm_second(Tensor of_x, Tensor of_weight, Tensor of_bias,
                                                          Tensor dy, Tensor x, Tensor mean, Tensor scale,
                                                          Tensor weight) {
  const RowShape shape = row_shape(x, weight);
  const Normals normals(x, shape, mean, scale, weight);
  of_x = alike(of_x, x, "of_x");
  of_weight = alike(of_weight, weight, "of_weight");
  of_bias = alike(of_bias, weight, "of_bias");
  dy = alike(dy, x, "dy");
  x = as_contiguous(x);
  const Tensor by_dy = new_contiguous(x), by_x = new_contiguous(x), by_weight = new_contiguous(weight);
  with_type(x, [&]<typename T>() {
    const RowSlopes<T> slopes{of_x.const_data_ptr<T>(), of_weight.const_data_ptr<T>(),
                              of_bias.const_data_ptr<T>()};
    layer_norm_second(slopes, dy.const_data_ptr<T>(), x.const_data_ptr<T>(), normals.of<T>(), shape,
                      by_dy.mutable_data_ptr<T>(), by_x.mutable_data_ptr<T>(),
                      by_weight.mutable_data_ptr<T>());
  });
  return {by_dy, by_x, by_weight};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("layer_norm", TORCH_BOX(&vleak::call_layer_norm));
  library.impl("layer_norm_backward", TORCH_BOX(&vleak::call_layer_norm_backward));
  library.impl("layer_norm_second", TORCH_BOX(&vleak::call_layer_norm_second));
}
