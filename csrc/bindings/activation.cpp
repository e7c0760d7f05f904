#include "kernels/activation.h"

#include <tuple>

#include "bindings/arguments.h"

namespace vleak {
namespace {

Activation activation(int64_t kind) {
  check(kind >= 0 && kind < kActivations, "there is no such activation");
  return static_cast<Activation>(kind);
}

Tensor call_activation_backward(Tensor dy, Tensor x, int64_t kind) {
  const Activation known = activation(kind);
  dy = alike(dy, x, "dy");
  x = as_contiguous(x);
  const Tensor dx = new_contiguous(x);
  with_type(x, [&]<typename T>() {
    activation_backward(known, dy.const_data_ptr<T>(), x.const_data_ptr<T>(), x.numel(),
                        dx.mutable_data_ptr<T>());
  });
  return dx;
}

std::tuple<Tensor, Tensor> call_activation_second(Tensor of_x, Tensor dy, Tensor x, int64_t kind) {
  const Activation known = activation(kind);
  of_x = alike(of_x, x, "of_x");
  dy = alike(dy, x, "dy");
  x = as_contiguous(x);
  const Tensor by_dy = new_contiguous(x), by_x = new_contiguous(x);
  with_type(x, [&]<typename T>() {
    activation_second(known, of_x.const_data_ptr<T>(), dy.const_data_ptr<T>(), x.const_data_ptr<T>(),
                      x.numel(), by_dy.mutable_data_ptr<T>(), by_x.mutable_data_ptr<T>());
  });
  return {by_dy, by_x};
}

std::tuple<Tensor, Tensor> call_softmax_second(Tensor of_x, Tensor dy, Tensor y) {
  check(y.dim() > 0, "expected rows");
  of_x = alike(of_x, y, "of_x");
  dy = alike(dy, y, "dy");
  y = as_contiguous(y);
  const Tensor by_dy = new_contiguous(y), by_y = new_contiguous(y);
  const int64_t entries = y.size(y.dim() - 1);
  if (y.numel() == 0) return {by_dy, by_y};
  with_type(y, [&]<typename T>() {
    softmax_second(of_x.const_data_ptr<T>(), dy.const_data_ptr<T>(), y.const_data_ptr<T>(),
                   y.numel() / entries, entries, by_dy.mutable_data_ptr<T>(), by_y.mutable_data_ptr<T>());
  });
  return {by_dy, by_y};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("activation_backward", TORCH_BOX(&vleak::call_activation_backward));
  library.impl("activation_second", TORCH_BOX(&vleak::call_activation_second));
  library.impl("softmax_second", TORCH_BOX(&vleak::call_softmax_second));
}
