#include "kernels/activation.h"

#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {

template <typename T>
void activation_backward(Activation kind, const T* dy, const T* x, int64_t count, T* dx) {
  const auto run = cpu_kernels<T>().activation_slopes;
  parallel_for(count, kCopyGrain, [&](int64_t begin, int64_t end) {
    run(kind, dy + begin, x + begin, end - begin, dx + begin);
  });
}

template <typename T>
void activation_second(Activation kind, const T* of_x, const T* dy, const T* x, int64_t count, T* by_dy,
                       T* by_x) {
  const auto run = cpu_kernels<T>().activation_bends;
  parallel_for(count, kCopyGrain, [&](int64_t begin, int64_t end) {
    run(kind, {of_x + begin, dy + begin, x + begin}, end - begin, by_dy + begin, by_x + begin);
  });
}

template <typename T>
void softmax_second(const T* of_x, const T* dy, const T* y, int64_t rows, int64_t entries, T* by_dy,
                    T* by_y) {
  const auto run = cpu_kernels<T>().softmax_row;
  parallel_for(rows, grain_of(kCopyGrain, entries), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * entries; at < end * entries; at += entries)
      run({of_x + at, dy + at, y + at}, entries, by_dy + at, by_y + at);
  });
}

#define VLEAK_ACTIVATION(T)                                                                      \
  template void activation_backward<T>(Activation, const T*, const T*, int64_t, T*);             \
  template void activation_second<T>(Activation, const T*, const T*, const T*, int64_t, T*, T*); \
  template void softmax_second<T>(const T*, const T*, const T*, int64_t, int64_t, T*, T*);

VLEAK_ACTIVATION(float)
VLEAK_ACTIVATION(double)

}  // namespace vleak
