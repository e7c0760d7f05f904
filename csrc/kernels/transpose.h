// Copies that transpose or skip entries: they pack operands for the tiles of tile.h.
#pragma once

#include "kernels/common.h"

// Older GCC versions lack __builtin_shufflevector.
#if defined(__clang__)
#define VLEAK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VLEAK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a < b){__VA_ARGS__})
#endif

namespace vleak {

// Four rows of four entries: to[i * to_stride + j] = rows[j][at + i]
template <typename T>
VLEAK_INLINE void transpose_four(const T* const* rows, int64_t at, T* to, int64_t to_stride) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
  const Four a = *reinterpret_cast<const Four*>(rows[0] + at),
             b = *reinterpret_cast<const Four*>(rows[1] + at);
  const Four c = *reinterpret_cast<const Four*>(rows[2] + at),
             d = *reinterpret_cast<const Four*>(rows[3] + at);
  const Four ab = VLEAK_SHUFFLE(a, b, 0, 4, 1, 5), ab2 = VLEAK_SHUFFLE(a, b, 2, 6, 3, 7);
  const Four cd = VLEAK_SHUFFLE(c, d, 0, 4, 1, 5), cd2 = VLEAK_SHUFFLE(c, d, 2, 6, 3, 7);
  *reinterpret_cast<Four*>(to) = VLEAK_SHUFFLE(ab, cd, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + to_stride) = VLEAK_SHUFFLE(ab, cd, 2, 3, 6, 7);
  *reinterpret_cast<Four*>(to + 2 * to_stride) = VLEAK_SHUFFLE(ab2, cd2, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + 3 * to_stride) = VLEAK_SHUFFLE(ab2, cd2, 2, 3, 6, 7);
}

// to[i] = from[2 * i] for i < 4
template <typename T>
VLEAK_INLINE void copy_even(const T* from /* [8] */, T* to /* [4] */) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
  const Four a = *reinterpret_cast<const Four*>(from), b = *reinterpret_cast<const Four*>(from + 4);
  *reinterpret_cast<Four*>(to) = VLEAK_SHUFFLE(a, b, 0, 2, 4, 6);
}

// to[i * to_stride + j] = rows[j][i] for j < count, i < length
template <typename T>
VLEAK_INLINE void transpose(const T* const* rows, int64_t count, int64_t length, T* to, int64_t to_stride) {
  const int64_t whole_rows = count / 4 * 4, whole = length / 4 * 4;
  for (int64_t row = 0; row < whole_rows; row += 4) {
    for (int64_t i = 0; i < whole; i += 4) transpose_four(rows + row, i, to + i * to_stride + row, to_stride);
  }
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t row = i < whole ? whole_rows : 0; row < count; ++row) to[i * to_stride + row] = rows[row][i];
  }
}

}  // namespace vleak
