#include "kernels/panel_product.h"

#include "bindings/arguments.h"

namespace vleak {
namespace {

void check_panels(const std::vector<Tensor>& xs, const std::vector<Tensor>& panels, int64_t columns,
                  bool transposed) {
  check_lists(xs, panels);
  check(columns >= 0, "panel_product: columns are negative");
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor &x = xs[i], &m = panels[i];
    check(x.dim() == 2 && m.dim() == 3 && m.size(2) == kPanel && m.size(0) == divide_up(columns, kPanel) &&
              x.size(0) == xs[0].size(0) && x.size(1) == (transposed ? columns : m.size(1)) &&
              (!transposed || m.size(1) == panels[0].size(1)),
          "panel_product: pairs do not match");
  }
}

Tensor call_panel_product(std::vector<Tensor> xs, std::vector<Tensor> panels, int64_t columns,
                          bool transposed) {
  check_panels(xs, panels, columns, transposed);
  const int64_t rows = xs[0].size(0);
  const Tensor result = new_contiguous(xs[0], {rows, transposed ? panels[0].size(1) : columns});
  if (result.numel() == 0) return result;
  with_type(xs[0], [&]<typename T>() {
    std::vector<PanelPair<T>> pairs;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (xs[i].stride(1) != 1 && xs[i].size(1) != 1) xs[i] = as_contiguous(xs[i]);
      panels[i] = as_contiguous(panels[i]);
      pairs.push_back(
          {{xs[i].const_data_ptr<T>(), xs[i].stride(0)}, {panels[i].const_data_ptr<T>(), panels[i].size(1)}});
    }
    vleak::panel_product(std::move(pairs), rows, columns, transposed, result.mutable_data_ptr<T>());
  });
  return result;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("panel_product", TORCH_BOX(&vleak::call_panel_product));
}
