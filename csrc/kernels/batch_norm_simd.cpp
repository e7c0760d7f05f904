#include "kernels/dispatch.h"
#include "kernels/vector.h"

namespace vleak::VLEAK_VARIANT {
namespace {

constexpr int64_t kBlock = 4096;

template <typename T>
VLEAK_INLINE double total(typename Wide<T>::Vector lanes) {
  double sum = 0;
  for (int i = 0; i < Wide<T>::kLanes; ++i) sum += lanes[i];
  return sum;
}

template <typename T, bool kSquares, bool kGradient, bool kSlope>
VLEAK_INLINE void add_sums(const T* x, T shift, const T* dy, const T* u, int64_t count, ChannelSums& sums) {
  using Vector = typename Wide<T>::Vector;
  constexpr int64_t kLanes = Wide<T>::kLanes;
  for (int64_t from = 0; from < count; from += kBlock) {
    const int64_t end = from + kBlock < count ? from + kBlock : count;
    Vector of_x{}, of_xx{}, of_dy{}, of_xdy{}, of_u{}, of_xu{}, of_udy{};
    int64_t i = from;
    for (; i + kLanes <= end; i += kLanes) {
      const Vector centred = load(x + i) - shift;
      if constexpr (kSquares) {
        of_x += centred;
        of_xx += centred * centred;
      }
      if constexpr (kGradient) {
        const Vector gradient = load(dy + i);
        of_dy += gradient;
        of_xdy += centred * gradient;
        if constexpr (kSlope) {
          const Vector slope = load(u + i);
          of_u += slope;
          of_xu += centred * slope;
          of_udy += slope * gradient;
        }
      }
    }
    for (; i < end; ++i) {
      const double centred = x[i] - shift;
      if constexpr (kSquares) {
        sums.x += centred;
        sums.xx += centred * centred;
      }
      if constexpr (kGradient) {
        sums.dy += dy[i];
        sums.xdy += centred * dy[i];
        if constexpr (kSlope) {
          sums.u += u[i];
          sums.xu += centred * u[i];
          sums.udy += static_cast<double>(u[i]) * dy[i];
        }
      }
    }
    if constexpr (kSquares) {
      sums.x += total<T>(of_x);
      sums.xx += total<T>(of_xx);
    }
    if constexpr (kGradient) {
      sums.dy += total<T>(of_dy);
      sums.xdy += total<T>(of_xdy);
      if constexpr (kSlope) {
        sums.u += total<T>(of_u);
        sums.xu += total<T>(of_xu);
        sums.udy += total<T>(of_udy);
      }
    }
  }
}

template <typename T, int kTerms>
VLEAK_INLINE void combined(const Combination<T>& terms, int64_t first, int64_t count) {
  using Vector = typename Wide<T>::Vector;
  constexpr int64_t kLanes = Wide<T>::kLanes;
  const T* from[kTerms];
  T factors[kTerms];
  for (int k = 0; k < kTerms; ++k) {
    from[k] = terms.from[k] + first;
    factors[k] = static_cast<T>(terms.factors[k]);
  }
  const T constant = static_cast<T>(terms.constant);
  T* to = terms.to + first;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vector sum = constant - Vector{};
    for (int k = 0; k < kTerms; ++k) sum += load(from[k] + i) * factors[k];
    store<T>(sum, to + i);
  }
  for (; i < count; ++i) {
    T sum = constant;
    for (int k = 0; k < kTerms; ++k) sum += from[k][i] * factors[k];
    to[i] = sum;
  }
}

}  // namespace

// Adds the sums of dy, and of u where it is there; where neither is, those of x.
template <typename T>
void channel_sums(const T* x, T shift, const T* dy, const T* u, int64_t count, ChannelSums& sums) {
  if (u != nullptr) {
    add_sums<T, false, true, true>(x, shift, dy, u, count, sums);
  } else if (dy != nullptr) {
    add_sums<T, false, true, false>(x, shift, dy, u, count, sums);
  } else {
    add_sums<T, true, false, false>(x, shift, dy, u, count, sums);
  }
}

// Writes entries from the first one on, of so many terms.
template <typename T>
void combine(const Combination<T>& terms, int count_of_terms, int64_t first, int64_t count) {
  if (count_of_terms == 1) return combined<T, 1>(terms, first, count);
  if (count_of_terms == 2) return combined<T, 2>(terms, first, count);
  combined<T, 3>(terms, first, count);
}

template void channel_sums<float>(const float*, float, const float*, const float*, int64_t, ChannelSums&);
template void channel_sums<double>(const double*, double, const double*, const double*, int64_t,
                                   ChannelSums&);
template void combine<float>(const Combination<float>&, int, int64_t, int64_t);
template void combine<double>(const Combination<double>&, int, int64_t, int64_t);

}  // namespace vleak::VLEAK_VARIANT
