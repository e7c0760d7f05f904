// Sums of products with matrices that are stored in panels.
#pragma once

#include <vector>

#include "kernels/product.h"
#include "kernels/tile.h"

namespace vleak {

// A matrix [depth, columns] cut into panels of kPanel columns, [panels, depth, kPanel], the last one padded
// with zeros: in both directions of multiplication, entries lie in the order in which they are read.
template <typename T>
struct Panels {
  const T* data;
  int64_t depth;

  const T* at(int64_t panel, int64_t row) const { return data + (panel * depth + row) * kPanel; }
};

template <typename T>
struct PanelPair {
  Matrix<const T> x;  // [rows, depth]; transposed: [rows, columns]
  Panels<T> m;        // [depth, columns]
};

// y = sum over pairs of x m, or x m^T where transposed (all of one depth). Not transposed, zeros of x are
// skipped where there are many. columns: of the matrices. The result does not depend on the number of
// threads.
template <typename T>
void panel_product(std::vector<PanelPair<T>> pairs /* at least one */, int64_t rows, int64_t columns,
                   bool transposed, T* y /* [rows, columns]; transposed: [rows, depth] */);

}  // namespace vleak
