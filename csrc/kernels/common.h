// Helpers that the CPU and CUDA kernels share. No file of this folder includes a torch header.
#pragma once

#include <cmath>
#include <cstdint>

// Files named *_simd.cpp are compiled once per instruction set. A function that the linker may merge between
// those copies could bring AVX-512 code to a machine without AVX-512, so every helper is either private to
// its file or always inlined.
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

VLEAK_INLINE int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

VLEAK_INLINE int64_t round_up(int64_t count, int64_t size) { return divide_up(count, size) * size; }

// A weight divided by a number of pairs; 0 where there are no pairs.
VLEAK_INLINE double per_pair(double weight, int64_t pairs) {
  return pairs > 0 ? weight / static_cast<double>(pairs) : 0.0;
}

VLEAK_INLINE float root(float value) { return sqrtf(value); }
VLEAK_INLINE double root(double value) { return sqrt(value); }

// -1, 0 or 1, like torch.sign; 0 for NaN.
template <typename T>
VLEAK_INLINE T sign(T value) {
  return static_cast<T>(value > T(0)) - static_cast<T>(value < T(0));
}

}  // namespace vleak
