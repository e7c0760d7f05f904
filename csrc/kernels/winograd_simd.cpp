#include "kernels/dispatch.h"

namespace vleak::VLEAK_VARIANT {

template <typename T>
void split_line(const T* __restrict line, int64_t count, T* __restrict even, T* __restrict odd) {
  for (int64_t i = 0; i < count; ++i) {
    even[i] = line[2 * i];
    odd[i] = line[2 * i + 1];
  }
}

template <typename T>
void winograd_input(const T* const* __restrict even, const T* const* __restrict odd, int64_t tiles,
                    T* __restrict to, int64_t step) {
  const T *e0 = even[0], *e1 = even[1], *e2 = even[2], *e3 = even[3];
  const T *o0 = odd[0], *o1 = odd[1], *o2 = odd[2], *o3 = odd[3];
  const auto row = [&](const T* ea, const T* oa, const T* eb, const T* ob, T sign, T* out)
                       __attribute__((always_inline)) {
                         T *out1 = out + step, *out2 = out1 + step, *out3 = out2 + step;
#pragma GCC ivdep
                         for (int64_t j = 0; j < tiles; ++j) {
                           const T a = ea[j] + sign * eb[j], b = oa[j] + sign * ob[j];
                           const T c = ea[j + 1] + sign * eb[j + 1], d = oa[j + 1] + sign * ob[j + 1];
                           out[j] = a - c;
                           out1[j] = b + c;
                           out2[j] = c - b;
                           out3[j] = b - d;
                         }
                       };
  row(e0, o0, e2, o2, T(-1), to);
  row(e1, o1, e2, o2, T(1), to + 4 * step);
  row(e2, o2, e1, o1, T(-1), to + 8 * step);
  row(e1, o1, e3, o3, T(-1), to + 12 * step);
}

template <typename T>
void winograd_output(const T* __restrict from, int64_t step, int64_t tiles, T bias, T* __restrict upper,
                     T* __restrict lower) {
#pragma GCC ivdep
  for (int64_t j = 0; j < tiles; ++j) {
    const T* m = from + j;
    T above[4], below[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const T m1 = m[(4 + q) * step], m2 = m[(8 + q) * step];
      above[q] = m[q * step] + m1 + m2;
      below[q] = m1 - m2 - m[(12 + q) * step];
    }
    upper[2 * j] = above[0] + above[1] + above[2] + bias;
    upper[2 * j + 1] = above[1] - above[2] - above[3] + bias;
    lower[2 * j] = below[0] + below[1] + below[2] + bias;
    lower[2 * j + 1] = below[1] - below[2] - below[3] + bias;
  }
}

#define VLEAK_WINOGRAD(T)                                                                  \
  template void split_line<T>(const T*, int64_t, T*, T*);                                  \
  template void winograd_input<T>(const T* const*, const T* const*, int64_t, T*, int64_t); \
  template void winograd_output<T>(const T*, int64_t, int64_t, T, T*, T*);

VLEAK_WINOGRAD(float)
VLEAK_WINOGRAD(double)

}  // namespace vleak::VLEAK_VARIANT
