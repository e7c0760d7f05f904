#include "kernels/layer_norm.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {
namespace {

constexpr int64_t kRows = 64;  // of a block

// Calls run(first row, end, sums) for blocks of rows, each with `kinds` sums of [entries] of its own, and
// adds the sums up.
template <typename T, typename Run>
void each_block(const RowShape& shape, int64_t kinds, T* const* totals, const Run& run) {
  const int64_t blocks = divide_up(shape.rows, kRows), width = kinds * shape.entries;
  const auto sums = scratch<T>(blocks * width);
  std::fill_n(sums.get(), blocks * width, T(0));
  parallel_for(blocks, grain_of(kCopyGrain, kRows * shape.entries), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      run(block * kRows, std::min(shape.rows, (block + 1) * kRows), sums.get() + block * width);
  });
  for (int64_t kind = 0; kind < kinds; ++kind) {
    std::fill_n(totals[kind], shape.entries, T(0));
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t i = 0; i < shape.entries; ++i)
        totals[kind][i] += sums[block * width + kind * shape.entries + i];
  }
}

}  // namespace

template <typename T>
void layer_norm(const T* x, const T* weight, const T* bias, const RowShape& shape, double eps, T* y, T* mean,
                T* scale) {
  const auto norm_row = cpu_kernels<T>().norm_row;
  parallel_for(shape.rows, grain_of(kCopyGrain, shape.entries), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * shape.entries;
      norm_row(x + at, weight, bias, shape.entries, eps, y + at, mean + row, scale + row);
    }
  });
}

template <typename T>
void layer_norm_backward(const T* dy, const T* x, const RowNormal<T>& normal, const RowShape& shape, T* dx,
                         T* dweight, T* dbias) {
  T* const totals[] = {dweight, dbias};
  each_block<T>(shape, 2, totals, [&](int64_t begin, int64_t end, T* sums) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * shape.entries;
      const NormRow<T> line{x + at,           dy + at,           normal.weight,
                            normal.mean[row], normal.scale[row], shape.entries};
      cpu_kernels<T>().norm_row_backward(line, dx + at, sums, sums + shape.entries);
    }
  });
}

template <typename T>
void layer_norm_second(const RowSlopes<T>& slopes, const T* dy, const T* x, const RowNormal<T>& normal,
                       const RowShape& shape, T* by_dy, T* by_x, T* by_weight) {
  T* const totals[] = {by_weight};
  each_block<T>(shape, 1, totals, [&](int64_t begin, int64_t end, T* sums) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * shape.entries;
      const NormRow<T> line{x + at,           dy + at,           normal.weight,
                            normal.mean[row], normal.scale[row], shape.entries};
      cpu_kernels<T>().norm_row_second(line, {slopes.x + at, slopes.weight, slopes.bias}, by_dy + at,
                                       by_x + at, sums);
    }
  });
}

#define VLEAK_LAYER_NORM(T)                                                                              \
  template void layer_norm<T>(const T*, const T*, const T*, const RowShape&, double, T*, T*, T*);        \
  template void layer_norm_backward<T>(const T*, const T*, const RowNormal<T>&, const RowShape&, T*, T*, \
                                       T*);                                                              \
  template void layer_norm_second<T>(const RowSlopes<T>&, const T*, const T*, const RowNormal<T>&,       \
                                     const RowShape&, T*, T*, T*);

VLEAK_LAYER_NORM(float)
VLEAK_LAYER_NORM(double)

}  // namespace vleak
