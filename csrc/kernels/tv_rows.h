// Total variation row by row, for the CPU kernels that include it: a row and its neighbours stay in the first
// cache, and every loop runs over independent entries, so any instruction set gives the same bits.
#pragma once

#include <cstring>

#include "kernels/common.h"

namespace vleak::VLEAK_VARIANT {
namespace {

// Cut from one block of scratch_doubles(W) doubles.
template <typename T>
struct Rows {
  T* across;      // [W + 1], weighted slope of each horizontal pair, 0 at both ends
  T* above;       // [W], weighted slope of the vertical pairs to the row above
  T* below;       // [W], and to the row below
  T* gradient;    // [W]
  double* value;  // [W], sums over the rows of a plane, column by column
};

template <typename T>
Rows<T> cut_rows(double* scratch, int64_t width) {
  T* across = reinterpret_cast<T*>(scratch + width);
  std::memset(scratch, 0, sizeof(double) * (5 * width + 2));
  return {across, across + width + 1, across + 2 * width + 1, across + 3 * width + 1, scratch};
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

// slope[i] = weight * f'(to[i] - from[i]), value[i] += weight * f(to[i] - from[i])
template <bool kSmooth, typename T>
void add_pairs(const T* __restrict from, const T* __restrict to, int64_t count, double weight, T smoothing,
               T* __restrict slope, double* __restrict value) {
  const T narrow = static_cast<T>(weight);
  for (int64_t i = 0; i < count; ++i) {
    const Penalty<T> pair = penalty<kSmooth>(to[i] - from[i], smoothing);
    slope[i] = narrow * pair.slope;
    value[i] += weight * static_cast<double>(pair.value);
  }
}

template <bool kSmooth, typename T>
void add_coupled(const T* __restrict x, const T* __restrict next, int64_t width, const TvNumbers<T>& tv,
                 T* __restrict across, T* __restrict below, double* __restrict value) {
  for (int64_t w = 0; w < width; ++w) {
    const T right = w + 1 < width ? x[w + 1] - x[w] : T(0);
    const T down = next[w] - x[w];
    const Coupled<T> pixel = coupled<kSmooth>(right, down, tv.smoothing);
    across[w] = tv.across * (right * pixel.inverse);
    below[w] = tv.across * (down * pixel.inverse);
    value[w] += tv.scale.across * static_cast<double>(pixel.value);
  }
}

template <bool kSmooth, typename T>
void add_space(const T* x, bool last, int64_t width, bool isotropic, const TvNumbers<T>& tv, Rows<T>& rows) {
  const T* next = last ? x : x + width;  // the difference across the far border is 0
  if (isotropic) {
    if (tv.across != T(0)) add_coupled<kSmooth>(x, next, width, tv, rows.across + 1, rows.below, rows.value);
  } else {
    if (tv.across != T(0)) {
      add_pairs<kSmooth>(x, x + 1, width - 1, tv.scale.across, tv.smoothing, rows.across + 1, rows.value);
    }
    if (tv.down != T(0) && !last) {
      add_pairs<kSmooth>(x, next, width, tv.scale.down, tv.smoothing, rows.below, rows.value);
    }
  }
  if (last) std::memset(rows.below, 0, sizeof(T) * width);
}

template <bool kSmooth, typename T>
void add_time(const T* __restrict x, int64_t to_next, int64_t to_previous, int64_t width,
              const TvNumbers<T>& tv, T* __restrict gradient, double* __restrict value) {
  if (to_next) {
    for (int64_t w = 0; w < width; ++w) {
      const Penalty<T> pair = penalty<kSmooth>(x[w + to_next] - x[w], tv.smoothing);
      gradient[w] -= tv.time * pair.slope;
      value[w] += tv.scale.time * static_cast<double>(pair.value);
    }
  }
  if (to_previous) {
    for (int64_t w = 0; w < width; ++w) {
      gradient[w] += tv.time * penalty<kSmooth>(x[w] - x[w - to_previous], tv.smoothing).slope;
    }
  }
}

// Calls finish_row(offset of the row in x, gradient of the row) after each row; returns the plane's value.
template <bool kSmooth, typename T, typename FinishRow>
double tv_plane(const T* x /* [N, C, T, H, W] */, int64_t plane, const ClipSize& size, bool isotropic,
                const TvNumbers<T>& tv, double* scratch, FinishRow finish_row) {
  const int64_t width = size.width, step = frame_size(size), frame = plane % size.frames;
  const int64_t to_next = tv.time != T(0) && frame + 1 < size.frames ? step : 0;
  const int64_t to_previous = tv.time != T(0) && frame > 0 ? step : 0;
  Rows<T> rows = cut_rows<T>(scratch, width);
  for (int64_t h = 0; h < size.height; ++h) {
    const int64_t offset = plane * step + h * width;
    add_space<kSmooth>(x + offset, h + 1 == size.height, width, isotropic, tv, rows);
    for (int64_t w = 0; w < width; ++w) {
      rows.gradient[w] = (rows.across[w] - rows.across[w + 1]) + (rows.above[w] - rows.below[w]);
    }
    add_time<kSmooth>(x + offset, to_next, to_previous, width, tv, rows.gradient, rows.value);
    finish_row(offset, rows.gradient, rows.value);
    T* swapped = rows.above;
    rows.above = rows.below;
    rows.below = swapped;
  }
  double sum = 0.0;
  for (int64_t w = 0; w < width; ++w) sum += rows.value[w];
  return sum;
}

}  // namespace
}  // namespace vleak::VLEAK_VARIANT
