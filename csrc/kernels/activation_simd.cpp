#include "kernels/dispatch.h"
#include "kernels/vector_math.h"

namespace vleak::VLEAK_VARIANT {
namespace {

template <typename T>
struct Derivatives {
  typename Wide<T>::Vector first, second;
};

struct Gelu {  // x times the probability of at most x under a standard normal distribution
  template <typename T>
  static inline __attribute__((always_inline)) Derivatives<T> of(typename Wide<T>::Vector x) {
    const NormalDistribution<T> normal = normal_distribution(x);
    const auto density = normal.bell * T(0.3989422804014327);  // 1 / sqrt(2 pi)
    return {normal.below + x * density, density * (T(2) - x * x)};
  }
};

struct Silu {  // x times the sigmoid of x
  template <typename T>
  static inline __attribute__((always_inline)) Derivatives<T> of(typename Wide<T>::Vector x) {
    const auto s = T(1) / (T(1) + exp_of<T>(-x)), slope = s * (T(1) - s);
    return {s + x * slope, slope * (T(2) + x * (T(1) - T(2) * s))};
  }
};

// Calls run(vectors read, write) for whole vectors; what is left goes through rows of one vector.
template <typename T, int kInputs, int kOutputs, typename Run>
VLEAK_INLINE void each_vector(const T* const (&from)[kInputs], int64_t count, T* const (&to)[kOutputs],
                              const Run& run) {
  using Vector = typename Wide<T>::Vector;
  constexpr int64_t kLanes = Wide<T>::kLanes;
  Vector inputs[kInputs], outputs[kOutputs];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kInputs; ++k) inputs[k] = load(from[k] + i);
    run(inputs, outputs);
    for (int k = 0; k < kOutputs; ++k) store<T>(outputs[k], to[k] + i);
  }
  if (i == count) return;
  for (int k = 0; k < kInputs; ++k)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      inputs[k][lane] = i + lane < count ? from[k][i + lane] : T(0);
  run(inputs, outputs);
  for (int k = 0; k < kOutputs; ++k)
    for (int64_t lane = 0; i + lane < count; ++lane) to[k][i + lane] = outputs[k][lane];
}

template <typename Kind, typename T>
VLEAK_INLINE void slopes(const T* dy, const T* x, int64_t count, T* dx) {
  const T* const from[] = {dy, x};
  T* const to[] = {dx};
  each_vector(from, count, to,
              [](const auto& in, auto& out) { out[0] = in[0] * Kind::template of<T>(in[1]).first; });
}

template <typename Kind, typename T>
VLEAK_INLINE void bends(const SecondInputs<T>& inputs, int64_t count, T* by_dy, T* by_x) {
  const T* const from[] = {inputs.of_x, inputs.dy, inputs.at};
  T* const to[] = {by_dy, by_x};
  each_vector(from, count, to, [](const auto& in, auto& out) {
    const Derivatives<T> derivatives = Kind::template of<T>(in[2]);
    out[0] = in[0] * derivatives.first;
    out[1] = in[0] * in[1] * derivatives.second;
  });
}

}  // namespace

template <typename T>
void activation_slopes(Activation kind, const T* dy, const T* x, int64_t count, T* dx) {
  if (kind == Activation::gelu) return slopes<Gelu>(dy, x, count, dx);
  slopes<Silu>(dy, x, count, dx);
}

template <typename T>
void activation_bends(Activation kind, const SecondInputs<T>& inputs, int64_t count, T* by_dy, T* by_x) {
  if (kind == Activation::gelu) return bends<Gelu>(inputs, count, by_dy, by_x);
  bends<Silu>(inputs, count, by_dy, by_x);
}

template <typename T>
void softmax_row(const SecondInputs<T>& inputs, int64_t entries, T* by_dy, T* by_y) {
  const auto [of_x, dy, y] = inputs;
  RowSum<T> of_dy, of_u;
  along_row<T>(entries, [&, dy = dy, y = y, of_x = of_x]<typename Value>(int64_t i) {
    of_dy.add(read<Value>(dy + i) * read<Value>(y + i));
    of_u.add(read<Value>(of_x + i) * read<Value>(y + i));
  });
  const T dy_sum = static_cast<T>(of_dy.total()), u_sum = static_cast<T>(of_u.total());
  along_row<T>(entries, [&, dy = dy, y = y, of_x = of_x]<typename Value>(int64_t i) {
    const Value u = read<Value>(of_x + i), gradient = read<Value>(dy + i);
    write(read<Value>(y + i) * (u - u_sum), by_dy + i);
    write(u * (gradient - dy_sum) - gradient * u_sum, by_y + i);
  });
}

#define VLEAK_ACTIVATION_ROWS(T)                                                          \
  template void activation_slopes<T>(Activation, const T*, const T*, int64_t, T*);        \
  template void activation_bends<T>(Activation, const SecondInputs<T>&, int64_t, T*, T*); \
  template void softmax_row<T>(const SecondInputs<T>&, int64_t, T*, T*);

VLEAK_ACTIVATION_ROWS(float)
VLEAK_ACTIVATION_ROWS(double)

}  // namespace vleak::VLEAK_VARIANT
