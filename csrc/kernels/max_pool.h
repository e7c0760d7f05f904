// Max pooling in two and three dimensions without padding, with the places of the maxima. With two spatial
// axes, the frame axis has size 1, kernel 1 and stride 1.
//
// As in PyTorch, the first of equal entries is taken, and NaN is larger than everything. No result depends on
// the number of threads or on the instruction set.
#pragma once

#include <array>

#include "kernels/common.h"

namespace vleak {

struct PoolShape {
  int64_t planes;                // clips times channels
  std::array<int64_t, 3> input;  // frames, rows, columns
  std::array<int64_t, 3> output;
  std::array<int64_t, 3> kernel;
  std::array<int64_t, 3> stride;
};

// values, places: [plane, frame, row, column]; a place is the number of an entry in its plane. x is
// contiguous.
template <typename T>
void max_pool(const T* x, const PoolShape& shape, T* values, int64_t* places);

// Windows that lie side by side. Entry k of window i is lines[k][i], and lies in the plane at first + i *
// stride + entries[k].
template <typename T>
struct PoolRow {
  const T* const* lines;
  const int64_t* entries;
  int64_t count;  // of entries
  int64_t windows;
  int64_t first;
  int64_t stride;
  T* values;        // [windows]
  int64_t* places;  // [windows]
};

}  // namespace vleak
