// One step of the attack's optimiser on independent trials.
#pragma once

#include "kernels/common.h"

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

// How many numbers a row of settings holds: see step_settings.
constexpr int kStepNumbers = 11;

struct StepSettings {
  TvSettings tv;
  double prior_weight;
  Rule rule;
  double lr;
  double beta1;
  double beta2;
  double eps;
  double low;
  double high;
  double bias1;       // 1 - beta1^step
  double bias2_root;  // sqrt(1 - beta2^step)
};

// row: [kStepNumbers], as vleak.ops.step_settings writes it; in memory of the device, so that a captured
// graph finds other numbers there at every step.
VLEAK_INLINE StepSettings step_settings(const double* row, bool isotropic, double smoothing, Rule rule) {
  return {{row[2], row[3], smoothing, isotropic},
          row[1],
          rule,
          row[0],
          row[4],
          row[5],
          row[6],
          row[7],
          row[8],
          row[9],
          row[10]};
}

// The settings in the precision of the clip, made once a kernel.
template <typename T>
struct StepNumbers {
  T lr, beta1, rest1, beta2, rest2, low, high;
  // m / bias1 / (root(v) / bias2_root + eps) is gain * m / (root(v) + floor), which divides once an entry.
  T gain, floor;

  VLEAK_INLINE StepNumbers from(const StepSettings& step) {
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

// Moves one entry; m and v are that entry's moments.
template <Rule kRule, typename T>
VLEAK_INLINE T moved_entry(T x, T total, T& m, T& v, const StepNumbers<T>& step) {
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

}  // namespace vleak
