// Layer norm of (row, entry), its derivative, and the derivative of that: a row is normalised by its own mean
// and deviation.
//
// Sums over rows are taken in blocks of rows and then in the order of the blocks. No result depends on the
// number of threads.
#pragma once

#include "kernels/common.h"

namespace vleak {

struct RowShape {
  int64_t rows;
  int64_t entries;
};

// What normalises the rows. scale is 1 / sqrt(variance + eps).
template <typename T>
struct RowNormal {
  const T* mean;    // [rows]
  const T* scale;   // [rows]
  const T* weight;  // [entries]
};

// y = weight * scale * (x - mean) + bias; x, y: [rows, entries]; mean, scale: [rows]
template <typename T>
void layer_norm(const T* x, const T* weight, const T* bias, const RowShape& shape, double eps, T* y, T* mean,
                T* scale);

// The derivatives of <dy, y> by x, weight and bias.
template <typename T>
void layer_norm_backward(const T* dy, const T* x, const RowNormal<T>& normal, const RowShape& shape, T* dx,
                         T* dweight, T* dbias);

// Factors of what layer_norm_backward returns, constants here.
template <typename T>
struct RowSlopes {
  const T* x;       // [rows, entries]
  const T* weight;  // [entries]
  const T* bias;    // [entries]
};

// One row, for the functions of kernels/dispatch.h.
template <typename T>
struct NormRow {
  const T* x;
  const T* dy;
  const T* weight;
  T mean;
  T scale;
  int64_t entries;
};

// The derivatives of <slopes.x, dx> + <slopes.weight, dweight> + <slopes.bias, dbias> by dy, x and weight.
template <typename T>
void layer_norm_second(const RowSlopes<T>& slopes, const T* dy, const T* x, const RowNormal<T>& normal,
                       const RowShape& shape, T* by_dy, T* by_x, T* by_weight);

}  // namespace vleak
