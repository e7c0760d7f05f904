// Sizes, settings and formulas that the CPU and CUDA kernels share. No torch header, ever.
#pragma once

#include <cmath>
#include <cstdint>

// Kernels are compiled once an instruction set; a function that the linker could share between those copies
// would bring AVX-512 to a machine without it. So every helper is private to its file, or inlined.
#if defined(__CUDACC__)
#define VLEAK_INLINE static __host__ __device__ __forceinline__
#else
#define VLEAK_INLINE static inline __attribute__((always_inline))
#endif

namespace vleak {

struct ClipSize {  // [N, C, T, H, W]
  int64_t trials;
  int64_t channels;
  int64_t frames;
  int64_t height;
  int64_t width;
};

VLEAK_INLINE int64_t frame_size(const ClipSize& size) { return size.height * size.width; }
VLEAK_INLINE int64_t planes_per_trial(const ClipSize& size) { return size.channels * size.frames; }
VLEAK_INLINE int64_t trial_size(const ClipSize& size) { return planes_per_trial(size) * frame_size(size); }

struct TvSettings {
  double spatial;
  double temporal;
  double smoothing;
  bool isotropic;
};

// Weight over number of pairs along each axis, 0 where an axis has no pairs or no weight.
struct TvScale {
  double across;
  double down;
  double time;
};

VLEAK_INLINE double per_pair(double weight, int64_t pairs) {
  return pairs > 0 ? weight / static_cast<double>(pairs) : 0.0;
}

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

VLEAK_INLINE float root(float value) { return sqrtf(value); }
VLEAK_INLINE double root(double value) { return sqrt(value); }

// -1, 0 or 1, as torch.sign says it.
template <typename T>
VLEAK_INLINE T sign(T value) {
  return static_cast<T>(value > T(0)) - static_cast<T>(value < T(0));
}

// A penalty f(d) and its derivative, not yet weighted.
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
  // square / (length + smoothing) is length - smoothing without its cancellation.
  return {square / (length + smoothing), length == T(0) ? T(0) : difference / length};
}

// The coupled penalty of a pixel; its slopes are `right * inverse` and `down * inverse`.
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

}  // namespace vleak
