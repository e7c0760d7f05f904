#include "kernels/product.h"

#include "bindings/arguments.h"

namespace vleak {
namespace {

bool has_contiguous_rows(const Tensor& matrix) { return matrix.stride(1) == 1 || matrix.size(1) == 1; }
bool has_contiguous_columns(const Tensor& matrix) { return matrix.stride(0) == 1 || matrix.size(0) == 1; }

Tensor with_contiguous_rows(const Tensor& matrix) {
  return has_contiguous_rows(matrix) ? matrix : as_contiguous(matrix);
}

// The matrix is read where it lies if its rows or its columns are contiguous.
template <typename T>
ProductPair<T> product_pair(const Tensor& x, const Tensor& m) {
  const bool transposed = !has_contiguous_rows(m);
  return {{x.const_data_ptr<T>(), x.stride(0)},
          {m.const_data_ptr<T>(), m.stride(transposed ? 1 : 0)},
          x.size(1),
          transposed};
}

void check_products(const std::vector<Tensor>& xs, const std::vector<Tensor>& ms) {
  check_lists(xs, ms);
  for (size_t i = 0; i < xs.size(); ++i) {
    check(xs[i].dim() == 2 && ms[i].dim() == 2 && xs[i].size(1) == ms[i].size(0) &&
              xs[i].size(0) == xs[0].size(0) && ms[i].size(1) == ms[0].size(1),
          "product: pairs do not match");
  }
}

Tensor call_product(std::vector<Tensor> xs, std::vector<Tensor> ms) {
  check_products(xs, ms);
  const int64_t rows = xs[0].size(0), columns = ms[0].size(1);
  const Tensor result = new_contiguous(xs[0], {rows, columns});
  if (result.numel() == 0) return result;
  with_type(xs[0], [&]<typename T>() {
    std::vector<ProductPair<T>> pairs;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (xs[i].size(1) == 0) continue;
      xs[i] = with_contiguous_rows(xs[i]);
      if (!has_contiguous_columns(ms[i])) ms[i] = with_contiguous_rows(ms[i]);
      pairs.push_back(product_pair<T>(xs[i], ms[i]));
    }
    vleak::product(pairs, rows, columns, result.mutable_data_ptr<T>());
  });
  return result;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) { library.impl("product", TORCH_BOX(&vleak::call_product)); }
