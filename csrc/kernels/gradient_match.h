// Distance between two lists of gradients, and its derivative with respect to the first list.
#pragma once

#include "kernels/common.h"

namespace vleak {

enum class MatchKind { kCosine, kL2 };

// One parameter tensor, or a piece of one.
template <typename T>
struct MatchTensor {
  const T* gradient;  // [count]
  const T* target;    // [count]
  const bool* mask;   // [count], or null: every entry counts
  T* residual;        // [count], written
  int64_t count;
};

struct MatchSums {
  double dot;       // <g, t>, or |g - t|^2 for l2
  double gradient;  // |g|^2
  double target;    // |t|^2
};

// residual = of_gradient * g + of_target * t
struct MatchResult {
  double distance;
  double of_gradient;
  double of_target;
};

VLEAK_INLINE MatchResult match_result(const MatchSums& sums, MatchKind kind) {
  if (kind == MatchKind::kL2) return {sums.dot, 2.0, -2.0};
  const double norm = root(sums.gradient);
  const double product = norm * root(sums.target);
  if (product == 0.0) return {1.0, 0.0, 0.0};
  const double cosine = sums.dot / product;
  const double distance = 1.0 - cosine;
  // Rounding can put the distance of parallel vectors slightly below zero. NaN must stay NaN.
  return {distance < 0.0 ? 0.0 : distance, cosine / norm / norm, -1.0 / product};
}

// On the CPU: writes the residuals and returns the distance and the factors of the residuals.
// other: sums over tensors that are not in the list. The result does not depend on the number of threads.
template <typename T>
MatchResult gradient_match(const MatchTensor<T>* tensors /* [count] */, int64_t count, MatchKind kind,
                           const MatchSums& other);

}  // namespace vleak
