// Distance between two gradients over a list of tensors, and its derivative.
#pragma once

#include "kernels/common.h"

namespace vleak {

enum class MatchKind { kCosine, kL2 };

// Sums run over pieces of this many entries, never across tensors, and the pieces are added in order: the
// result does not depend on who computed which piece.
constexpr int64_t kMatchPiece = 16384;

template <typename T>
struct MatchPiece {
  const T* gradient;  // [count]
  const T* target;    // [count]
  const bool* mask;   // [count], or null: every entry counts
  T* residual;        // [count]
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
  // Rounding can put the distance of parallel vectors a hair below zero; NaN must stay NaN.
  return {distance < 0.0 ? 0.0 : distance, cosine / norm / norm, -1.0 / product};
}

}  // namespace vleak
