#include "kernels/product.h"

#include "kernels/dispatch.h"

namespace vleak::VLEAK_VARIANT {
namespace {

// How many vectors of sums fit into the registers beside the operands, and their width in bytes.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kSums = 24, kMostRows = 12;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kSums = 12, kMostRows = 6;
#else
constexpr int kBytes = 16, kSums = 12, kMostRows = 6;
#endif
static_assert(kSums * kBytes <= kMaxTileBytes);

template <typename T>
struct Wide {
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef T Loose __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = kBytes / sizeof(T);
};

template <typename T>
VLEAK_INLINE typename Wide<T>::Vector load(const T* from /* [lanes] */) {
  return *reinterpret_cast<const typename Wide<T>::Loose*>(from);
}

template <typename T, int kRows, int kVectors>
void run_tile(const T* left, const T* right, const int64_t* offsets, int64_t count, const int64_t* bases,
              T* sums) {
  using Vector = typename Wide<T>::Vector;
  constexpr int kLanes = Wide<T>::kLanes;
  const T* from[kVectors];
  Vector sum[kRows][kVectors];
  for (int v = 0; v < kVectors; ++v) from[v] = right + bases[v];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[row][v] = load(sums + (row * kVectors + v) * kLanes);
  }
  for (int64_t k = 0; k < count; ++k, left += kRows) {
    const int64_t offset = offsets[k];
    Vector entries[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) entries[v] = load(from[v] + offset);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[row][v] += left[row] * entries[v];
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<typename Wide<T>::Loose*>(sums + (row * kVectors + v) * kLanes) = sum[row][v];
    }
  }
}

constexpr int most_vectors(int rows) {
  return kSums / rows < kMaxTileVectors ? kSums / rows : static_cast<int>(kMaxTileVectors);
}

template <typename T, int kRows, int kVectors>
Tile<T> find(int64_t rows, int64_t vectors) {
  if (rows == kRows && vectors == kVectors) return &run_tile<T, kRows, kVectors>;
  if constexpr (kVectors > 1) {
    return find<T, kRows, kVectors - 1>(rows, vectors);
  } else if constexpr (kRows > 1) {
    return find<T, kRows - 1, most_vectors(kRows - 1)>(rows, vectors);
  }
  return nullptr;
}

}  // namespace

// The loop for a block of this shape; null if it does not fit into the registers.
template <typename T>
Tile<T> tile(int64_t rows, int64_t vectors) {
  return find<T, kMostRows, most_vectors(kMostRows)>(rows, vectors);
}

template <typename T>
TileLimits tile_limits() {
  return {Wide<T>::kLanes, kSums, kMostRows};
}

template Tile<float> tile<float>(int64_t, int64_t);
template Tile<double> tile<double>(int64_t, int64_t);
template TileLimits tile_limits<float>();
template TileLimits tile_limits<double>();

}  // namespace vleak::VLEAK_VARIANT
