// Total variation row by row, for the CPU kernels that include this file. A row and its neighbours stay in
// the first-level cache. Every loop runs over independent entries, so all instruction sets give the same
// bits.
#pragma once

#include <cstring>

#include "kernels/dispatch.h"

namespace vleak::VLEAK_VARIANT {
namespace {

// Buffers of one row, cut from one block of scratch_doubles(W) doubles.
template <typename T>
struct Rows {
  T* x;           // [W + 1], the row with its last entry repeated: the difference across the border is 0
  T* across;      // [W + 1], weighted slope of each horizontal pair, 0 at both ends
  T* above;       // [W], weighted slope of the vertical pairs to the row above
  T* below;       // [W], and to the row below
  T* later;       // [W], and to the next frame
  T* gradient;    // [W]
  double* value;  // [W], sums over the rows of a plane, column by column
};

template <typename T>
Rows<T> cut_rows(double* scratch, int64_t width) {
  T* x = reinterpret_cast<T*>(scratch + width);
  std::memset(scratch, 0, sizeof(double) * scratch_doubles(width));
  T* across = x + width + 1;
  T* rest = across + width + 1;
  return {x, across, rest, rest + width, rest + 2 * width, rest + 3 * width, scratch};
}

template <typename T>
struct TvNumbers {
  TvScale scale;
  T across, down, time, smoothing;
};

template <typename T>
TvNumbers<T> tv_numbers(const ClipSize& size, const TvSettings& tv) {
  const TvScale scale = tv_scale(size, tv);
  return {scale, T(scale.across), T(scale.down), T(scale.time), T(tv.smoothing)};
}

// A row and its neighbours. Beyond a border, and where a weight is 0, the neighbour is the row itself: the
// difference is then 0, and the loops need no branch.
template <typename T>
struct Around {
  const T* x;        // [W]
  const T* below;    // [W]
  const T* later;    // [W], the same row of the next frame
  const T* earlier;  // [W], the same row of the previous frame
};

// Weighted slopes and value of the three pairs that start at an entry: to its right, below and later.
template <typename T>
struct Pairs {
  T across, below, later;
  double value;
};

template <bool kSmooth, bool kIsotropic, typename T>
VLEAK_INLINE Pairs<T> pairs(T right, T down, T next, const TvNumbers<T>& tv) {
  const Penalty<T> time = penalty<kSmooth>(next, tv.smoothing);
  const double in_time = tv.scale.time * static_cast<double>(time.value);
  if (kIsotropic) {
    const Coupled<T> pixel = coupled<kSmooth>(right, down, tv.smoothing);
    return {tv.across * (right * pixel.inverse), tv.across * (down * pixel.inverse), tv.time * time.slope,
            in_time + tv.scale.across * static_cast<double>(pixel.value)};
  }
  const Penalty<T> horizontal = penalty<kSmooth>(right, tv.smoothing);
  const Penalty<T> vertical = penalty<kSmooth>(down, tv.smoothing);
  return {tv.across * horizontal.slope, tv.down * vertical.slope, tv.time * time.slope,
          in_time + tv.scale.across * static_cast<double>(horizontal.value) +
              tv.scale.down * static_cast<double>(vertical.value)};
}

// All arrays are [count]. Pointers are restricted and the numbers passed by value, because the compiler
// vectorises the loop only then.
template <bool kSmooth, bool kIsotropic, typename T>
void add_pairs(const T* __restrict x, const T* __restrict right, const T* __restrict down,
               const T* __restrict next, int64_t count, const TvNumbers<T> tv, T* __restrict across,
               T* __restrict below, T* __restrict later, double* __restrict value) {
  for (int64_t w = 0; w < count; ++w) {
    const Pairs<T> at = pairs<kSmooth, kIsotropic>(right[w] - x[w], down[w] - x[w], next[w] - x[w], tv);
    across[w] = at.across;
    below[w] = at.below;
    later[w] = at.later;
    value[w] += at.value;
  }
}

template <bool kSmooth, typename T>
void collect_gradient(const T* __restrict x, const T* __restrict earlier, int64_t width,
                      const TvNumbers<T> tv, const T* __restrict across, const T* __restrict above,
                      const T* __restrict below, const T* __restrict later, T* __restrict gradient) {
  for (int64_t w = 0; w < width; ++w) {
    const T space = (across[w] - across[w + 1]) + (above[w] - below[w]);
    gradient[w] = (space - later[w]) + tv.time * penalty<kSmooth>(x[w] - earlier[w], tv.smoothing).slope;
  }
}

template <bool kSmooth, bool kIsotropic, typename T>
void add_row(const Around<T>& row, int64_t width, const TvNumbers<T>& tv, const Rows<T>& rows) {
  std::memcpy(rows.x, row.x, sizeof(T) * width);
  rows.x[width] = rows.x[width - 1];
  add_pairs<kSmooth, kIsotropic>(row.x, rows.x + 1, row.below, row.later, width, tv, rows.across + 1,
                                 rows.below, rows.later, rows.value);
  collect_gradient<kSmooth>(row.x, row.earlier, width, tv, rows.across, rows.above, rows.below, rows.later,
                            rows.gradient);
}

// Returns the value of a plane. Calls finish_row(offset of the row in x, gradient of the row, value) after
// each row.
template <bool kSmooth, bool kIsotropic, typename T, typename FinishRow>
double tv_plane(const T* x /* [N, C, T, H, W] */, int64_t plane, const ClipSize& size, const TvNumbers<T>& tv,
                double* scratch, FinishRow finish_row) {
  const int64_t width = size.width, frame = plane % size.frames;
  const int64_t to_below = tv.scale.down != 0.0 ? width : 0;
  const int64_t to_frame = tv.scale.time != 0.0 ? frame_size(size) : 0;
  const int64_t to_later = frame + 1 < size.frames ? to_frame : 0, to_earlier = frame > 0 ? to_frame : 0;
  Rows<T> rows = cut_rows<T>(scratch, width);
  for (int64_t h = 0; h < size.height; ++h) {
    const int64_t offset = plane * frame_size(size) + h * width;
    const T* row = x + offset;
    const T* below = h + 1 < size.height ? row + to_below : row;
    add_row<kSmooth, kIsotropic>(Around<T>{row, below, row + to_later, row - to_earlier}, width, tv, rows);
    finish_row(offset, rows.gradient, rows.value);
    T* swapped = rows.above;
    rows.above = rows.below;
    rows.below = swapped;
  }
  double sum = 0.0;
  for (int64_t w = 0; w < width; ++w) sum += rows.value[w];
  return sum;
}

// The same, with the settings as compile-time constants.
template <typename T, typename FinishRow>
double tv_plane(const T* x, int64_t plane, const ClipSize& size, const TvSettings& settings,
                const TvNumbers<T>& tv, double* scratch, FinishRow finish_row) {
  if (settings.isotropic) {
    return settings.smoothing > 0.0 ? tv_plane<true, true>(x, plane, size, tv, scratch, finish_row)
                                    : tv_plane<false, true>(x, plane, size, tv, scratch, finish_row);
  }
  return settings.smoothing > 0.0 ? tv_plane<true, false>(x, plane, size, tv, scratch, finish_row)
                                  : tv_plane<false, false>(x, plane, size, tv, scratch, finish_row);
}

}  // namespace
}  // namespace vleak::VLEAK_VARIANT
