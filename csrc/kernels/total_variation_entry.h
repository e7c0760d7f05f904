// Total variation of one entry of a clip, for the CUDA kernels that include this file.
#pragma once

#include "kernels/cuda.h"

namespace vleak::cuda {

// The part of a clip that one thread block works on: kBlockEntries entries of one plane.
struct BlockPlace {
  int64_t plane;  // of [N * C * T]
  int64_t trial;
  int64_t frame;
  int64_t first;  // entry of the plane
};

static __device__ __forceinline__ BlockPlace block_place(const ClipSize& size) {
  const int64_t blocks = blocks_for(frame_size(size));
  const int64_t plane = blockIdx.x / blocks;
  return {plane, plane / planes_per_trial(size), plane % size.frames, (blockIdx.x % blocks) * kBlockEntries};
}

template <typename T>
struct TvEntry {
  T gradient;
  double value;
};

template <bool kSmooth, typename T>
static __device__ __forceinline__ void add_plain(const T* x, int64_t h, int64_t w, const ClipSize& size,
                                                 const TvScale& scale, T eps, TvEntry<T>& entry) {
  const int64_t width = size.width;
  const T across = T(scale.across), down = T(scale.down);
  T left = 0, right = 0, above = 0, below = 0;
  if (scale.across != 0.0) {
    if (w > 0) left = across * penalty<kSmooth>(x[0] - x[-1], eps).slope;
    if (w + 1 < width) {
      const Penalty<T> pair = penalty<kSmooth>(x[1] - x[0], eps);
      right = across * pair.slope;
      entry.value += scale.across * static_cast<double>(pair.value);
    }
  }
  if (scale.down != 0.0) {
    if (h > 0) above = down * penalty<kSmooth>(x[0] - x[-width], eps).slope;
    if (h + 1 < size.height) {
      const Penalty<T> pair = penalty<kSmooth>(x[width] - x[0], eps);
      below = down * pair.slope;
      entry.value += scale.down * static_cast<double>(pair.value);
    }
  }
  entry.gradient += (left - right) + (above - below);
}

template <bool kSmooth, typename T>
static __device__ __forceinline__ void add_coupled(const T* x, int64_t h, int64_t w, const ClipSize& size,
                                                   const TvScale& scale, T eps, TvEntry<T>& entry) {
  if (scale.across == 0.0) return;
  const int64_t width = size.width;
  const bool has_right = w + 1 < width, has_below = h + 1 < size.height;
  const T weight = T(scale.across);
  const T to_right = has_right ? x[1] - x[0] : T(0), to_below = has_below ? x[width] - x[0] : T(0);
  const Coupled<T> here = coupled<kSmooth>(to_right, to_below, eps);
  T left = 0, above = 0;
  if (w > 0) {
    const T step = x[0] - x[-1], turn = has_below ? x[width - 1] - x[-1] : T(0);
    left = weight * (step * coupled<kSmooth>(step, turn, eps).inverse);
  }
  if (h > 0) {
    const T step = x[0] - x[-width], turn = has_right ? x[1 - width] - x[-width] : T(0);
    above = weight * (step * coupled<kSmooth>(turn, step, eps).inverse);
  }
  entry.value += scale.across * static_cast<double>(here.value);
  entry.gradient +=
      (left - weight * (to_right * here.inverse)) + (above - weight * (to_below * here.inverse));
}

template <bool kSmooth, typename T>
static __device__ __forceinline__ void add_time(const T* x, int64_t frame, const ClipSize& size,
                                                const TvScale& scale, T eps, TvEntry<T>& entry) {
  if (scale.time == 0.0) return;
  const int64_t step = frame_size(size);
  const T weight = T(scale.time);
  if (frame + 1 < size.frames) {
    const Penalty<T> pair = penalty<kSmooth>(x[step] - x[0], eps);
    entry.gradient -= weight * pair.slope;
    entry.value += scale.time * static_cast<double>(pair.value);
  }
  if (frame > 0) entry.gradient += weight * penalty<kSmooth>(x[0] - x[-step], eps).slope;
}

// x points to the entry inside its clip.
template <bool kSmooth, typename T>
static __device__ __forceinline__ TvEntry<T> tv_entry(const T* x, int64_t entry_of_plane, int64_t frame,
                                                      const ClipSize& size, const TvScale& scale,
                                                      bool isotropic, T eps) {
  const uint32_t width = static_cast<uint32_t>(size.width), at = static_cast<uint32_t>(entry_of_plane);
  const int64_t h = at / width, w = at % width;
  TvEntry<T> entry = {T(0), 0.0};
  if (isotropic) {
    add_coupled<kSmooth>(x, h, w, size, scale, eps, entry);
  } else {
    add_plain<kSmooth>(x, h, w, size, scale, eps, entry);
  }
  add_time<kSmooth>(x, frame, size, scale, eps, entry);
  return entry;
}

}  // namespace vleak::cuda
