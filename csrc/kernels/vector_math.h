// Exponentials and the normal distribution, on whole vectors; for files named *_simd.cpp.
#pragma once

#include "kernels/vector.h"

namespace vleak::VLEAK_VARIANT {
namespace {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  typedef int32_t Bits;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kHigh = 0.693145751953125f, kLow = 1.42860682030941723e-6f;
  static constexpr float kSmallest = -86.0f, kLargest = 88.72283f;
};

template <>
struct ExpConstants<double> {
  typedef int64_t Bits;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kRounding = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kHigh = 0.6931471803691238, kLow = 1.9082149292705877e-10;
  static constexpr double kSmallest = -707.0, kLargest = 709.782712893384;
};

// x = k ln 2 + r with |r| <= ln 2 / 2: the power of k goes into the bits, exp(r) is a Taylor series. Half the
// power keeps the largest within range. Results below the smallest normal number are 0.
template <typename T>
VLEAK_INLINE typename Wide<T>::Vector exp_of(typename Wide<T>::Vector x) {
  using Vector = typename Wide<T>::Vector;
  using Constants = ExpConstants<T>;
  typedef typename Constants::Bits BitVector __attribute__((vector_size(kBytes)));
  const Vector none{}, shifted = x * T(1.4426950408889634) + Constants::kRounding;
  const Vector k = shifted - Constants::kRounding;
  const Vector r = x - k * Constants::kHigh - k * Constants::kLow;
  const BitVector half_power = (reinterpret_cast<BitVector>(shifted) << Constants::kMantissa) +
                               (typename Constants::Bits(Constants::kBias - 1) << Constants::kMantissa);
  T factor = 1;
  for (int term = 2; term <= Constants::kTerms; ++term) factor /= T(term);
  Vector sum = factor + none;
  for (int term = Constants::kTerms; term > 0; --term) {
    factor *= T(term);
    sum = sum * r + factor;
  }
  const Vector value = reinterpret_cast<Vector>(half_power) * sum * T(2);
  const Vector bounded = x < Constants::kSmallest ? none : value;
  return x > Constants::kLargest ? none + T(__builtin_inf()) : bounded;
}

// Standard normal distribution: the probability of at most x, and exp(-x^2 / 2).
template <typename T>
struct NormalDistribution {
  typename Wide<T>::Vector below, bell;
};

// The tail is bell / 2 times the scaled complementary error function of z = |x| / sqrt(2), which is smooth in
// (z - 2) / (z + 2). The polynomial is a least-squares fit to it for z up to 10, where the bell has ended.
VLEAK_INLINE Wide<float>::Vector scaled_tail(Wide<float>::Vector z) {
  constexpr float kFit[] = {0.255395682f,    -0.427185932f,  0.241657893f,     -0.0789761352f,
                            0.00373547611f,  0.0069792625f,  -0.000856684976f, -0.000928920062f,
                            6.51535568e-05f, 0.000109279558f};
  const Wide<float>::Vector u = (z - 2.0f) / (z + 2.0f);
  Wide<float>::Vector sum = kFit[9] - Wide<float>::Vector{};
  for (int term = 8; term >= 0; --term) sum = sum * u + kFit[term];
  return sum;
}

VLEAK_INLINE NormalDistribution<float> normal_distribution(Wide<float>::Vector x) {
  using Vector = Wide<float>::Vector;
  const Vector none{};
  const Vector bell = exp_of<float>(x * x * -0.5f);
  const Vector tail = 0.5f * bell * scaled_tail((x < none ? -x : x) * 0.70710678f);
  return {x < none ? tail : 1.0f - tail, bell};
}

VLEAK_INLINE NormalDistribution<double> normal_distribution(Wide<double>::Vector x) {
  NormalDistribution<double> result{{}, exp_of<double>(x * x * -0.5)};
  for (int lane = 0; lane < Wide<double>::kLanes; ++lane)
    result.below[lane] = 0.5 * std::erfc(-x[lane] * 0.7071067811865476);
  return result;
}

}  // namespace
}  // namespace vleak::VLEAK_VARIANT
