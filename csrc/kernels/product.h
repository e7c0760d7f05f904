// Sums of matrix products.
#pragma once

#include <vector>

#include "kernels/common.h"

namespace vleak {

// A matrix whose rows are contiguous; stride: entries from one row to the next.
template <typename T>
struct Matrix {
  T* data;
  int64_t stride;
};

template <typename T>
struct ProductPair {
  Matrix<const T> x;  // [rows, depth]
  Matrix<const T> m;  // [depth, columns]; transposed: [columns, depth]
  int64_t depth;      // > 0
  bool transposed;
};

// y = sum over pairs of x m, or x m^T where transposed. The large operand m is read once, where it lies. The
// result does not depend on the number of threads.
template <typename T>
void product(const std::vector<ProductPair<T>>& pairs, int64_t rows, int64_t columns,
             T* y /* [rows, columns] */);

}  // namespace vleak
