#include "kernels/dispatch.h"
#include "kernels/vector.h"

namespace vleak::VLEAK_VARIANT {
namespace {

constexpr int64_t kBlock = 4096;

template <typename T, bool kSquares, bool kGradient, bool kSlope>
VLEAK_INLINE void add_sums(const T* x, T shift, const T* dy, const T* u, int64_t count, ChannelSums& sums) {
  for (int64_t from = 0; from < count; from += kBlock) {
    RowSum<T> of_x, of_xx, of_dy, of_xdy, of_u, of_xu, of_udy;
    along_row<T>(count - from < kBlock ? count - from : kBlock, [&]<typename Value>(int64_t at) {
      const int64_t i = from + at;
      const Value centred = read<Value>(x + i) - shift;
      if constexpr (kSquares) {
        of_x.add(centred);
        of_xx.add(centred * centred);
      }
      if constexpr (kGradient) {
        const Value gradient = read<Value>(dy + i);
        of_dy.add(gradient);
        of_xdy.add(centred * gradient);
        if constexpr (kSlope) {
          const Value slope = read<Value>(u + i);
          of_u.add(slope);
          of_xu.add(centred * slope);
          of_udy.add(slope * gradient);
        }
      }
    });
    if constexpr (kSquares) {
      sums.x += of_x.total();
      sums.xx += of_xx.total();
    }
    if constexpr (kGradient) {
      sums.dy += of_dy.total();
      sums.xdy += of_xdy.total();
      if constexpr (kSlope) {
        sums.u += of_u.total();
        sums.xu += of_xu.total();
        sums.udy += of_udy.total();
      }
    }
  }
}

template <typename T, int kTerms>
VLEAK_INLINE void combined(const Combination<T>& terms, int64_t first, int64_t count) {
  const T* from[kTerms];
  T factors[kTerms];
  for (int k = 0; k < kTerms; ++k) {
    from[k] = terms.from[k] + first;
    factors[k] = static_cast<T>(terms.factors[k]);
  }
  const T constant = static_cast<T>(terms.constant);
  T* to = terms.to + first;
  along_row<T>(count, [&]<typename Value>(int64_t i) {
    Value sum = constant - Value{};
    for (int k = 0; k < kTerms; ++k) sum += read<Value>(from[k] + i) * factors[k];
    write(sum, to + i);
  });
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
