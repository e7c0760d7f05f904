// One step of an attack's optimiser on independent trials, with total variation and the prior included.
#pragma once

#include "kernels/total_variation.h"

namespace vleak {

enum class Rule { kAdam, kSign, kSignAdam };

template <typename T>
struct Trials {
  ClipSize size;
  const T* x;              // [N, C, T, H, W]
  const T* data_gradient;  // [N, C, T, H, W]
  const T* prior;          // [N, C, T, H, W] or [1, C, T, H, W], or null
  int64_t prior_stride;    // entries from one trial's prior to the next, 0 when shared
  T* m;                    // [N, C, T, H, W], Adam's first moment, changed in place
  T* v;                    // [N, C, T, H, W], Adam's second moment, changed in place
  T* moved;                // [N, C, T, H, W], the new x
};

// The numbers that change from step to step, in the order in which vleak.native.descend.StepSettings has
// them. They come from a float64 tensor on the device, so that a captured graph finds other ones at every
// step.
struct StepNumbers {
  double lr;
  double prior_weight;
  double spatial;
  double temporal;
  double beta1;
  double beta2;
  double eps;
  double low;
  double high;
  double bias1;       // 1 - beta1^step
  double bias2_root;  // sqrt(1 - beta2^step)
};

constexpr int kStepNumbers = 11;
static_assert(sizeof(StepNumbers) == kStepNumbers * sizeof(double));

struct StepSettings {
  const StepNumbers* numbers;  // [1], in the memory of the device
  bool isotropic;
  double smoothing;
  Rule rule;
};

VLEAK_INLINE TvSettings tv_settings(const StepSettings& step) {
  return {step.numbers->spatial, step.numbers->temporal, step.smoothing, step.isotropic};
}

// The numbers in the precision of the clip, computed once per kernel.
template <typename T>
struct StepFactors {
  T lr, beta1, rest1, beta2, rest2, low, high;
  // m / bias1 / (root(v) / bias2_root + eps) equals gain * m / (root(v) + floor), which divides only once.
  T gain, floor;

  VLEAK_INLINE StepFactors from(const StepNumbers& step) {
    return {T(step.lr),
            T(step.beta1),
            T(1.0 - step.beta1),
            T(step.beta2),
            T(1.0 - step.beta2),
            T(step.low),
            T(step.high),
            T(step.bias2_root / step.bias1),
            T(step.bias2_root * step.eps)};
  }
};

// The new value of one entry; m and v are the moments of that entry, changed in place.
template <Rule kRule, typename T>
VLEAK_INLINE T moved_entry(T x, T total, T& m, T& v, const StepFactors<T>& step) {
  T direction = kRule == Rule::kAdam ? total : sign(total);
  if (kRule != Rule::kSign) {
    m = step.beta1 * m + step.rest1 * direction;
    v = step.beta2 * v + step.rest2 * (direction * direction);
    direction = step.gain * m / (root(v) + step.floor);
  }
  const T moved = x - step.lr * direction;
  const T raised = moved < step.low ? step.low : moved;
  return raised > step.high ? step.high : raised;
}

// On the CPU. The result does not depend on the number of threads.
template <typename T>
void descend(const Trials<T>& trials, const StepSettings& step, const T* distance /* [N] */,
             T* objective /* [N], written */, T* best /* [N, C, T, H, W], in place */,
             T* best_objective /* [N], in place */);

}  // namespace vleak
