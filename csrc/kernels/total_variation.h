// Total variation of clips over space and time, and its gradient.
#pragma once

#include "kernels/common.h"

namespace vleak {

struct TvSettings {
  double spatial;
  double temporal;
  double smoothing;
  bool isotropic;
};

// Weight divided by the number of pairs, per axis; 0 where an axis has no pairs or no weight.
struct TvScale {
  double across;
  double down;
  double time;
};

VLEAK_INLINE TvScale tv_scale(const ClipSize& size, const TvSettings& tv) {
  const int64_t planes = planes_per_trial(size);
  const double time = per_pair(tv.temporal, size.channels * (size.frames - 1) * frame_size(size));
  if (tv.isotropic) {
    const double space = per_pair(tv.spatial, planes * frame_size(size));
    return {space, space, time};
  }
  return {per_pair(tv.spatial, planes * size.height * (size.width - 1)),
          per_pair(tv.spatial, planes * (size.height - 1) * size.width), time};
}

// A penalty f(difference) and its derivative, without weight.
template <typename T>
struct Penalty {
  T value;
  T slope;
};

template <bool kSmooth, typename T>
VLEAK_INLINE Penalty<T> penalty(T difference, T smoothing) {
  if (!kSmooth) return {difference < T(0) ? -difference : difference, sign(difference)};
  const T square = difference * difference;
  const T length = root(square + smoothing * smoothing);
  // square / (length + smoothing) equals length - smoothing without the cancellation.
  return {square / (length + smoothing), length == T(0) ? T(0) : difference / length};
}

// The isotropic penalty of a pixel. Its slopes are `right * inverse` and `down * inverse`.
template <typename T>
struct Coupled {
  T value;
  T inverse;
};

template <bool kSmooth, typename T>
VLEAK_INLINE Coupled<T> coupled(T right, T down, T smoothing) {
  const T square = right * right + down * down;
  const T length = kSmooth ? root(square + smoothing * smoothing) : root(square);
  return {kSmooth ? square / (length + smoothing) : length, length == T(0) ? T(0) : T(1) / length};
}

// On the CPU. The result does not depend on the number of threads.
template <typename T>
void total_variation(const T* x /* [N, C, T, H, W] */, const ClipSize& size, const TvSettings& tv,
                     T* gradient /* [N, C, T, H, W] */, T* value /* [N] */);

}  // namespace vleak
