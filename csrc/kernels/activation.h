// Second derivatives of activations: GELU, SiLU and softmax, each in one pass over memory.
#pragma once

#include "kernels/common.h"

namespace vleak {

// In the order of ACTIVATIONS in vleak/native/activation.py.
enum class Activation : int64_t { gelu, silu };
constexpr int64_t kActivations = 2;

// dx = dy * f'(x); all [count]
template <typename T>
void activation_backward(Activation kind, const T* dy, const T* x, int64_t count, T* dx);

// The derivatives of <of_x, dx>: by dy, of_x * f'(x), and by x, of_x * dy * f''(x).
template <typename T>
void activation_second(Activation kind, const T* of_x, const T* dy, const T* x, int64_t count, T* by_dy,
                       T* by_x);

// What a second derivative reads, for the functions of kernels/dispatch.h.
template <typename T>
struct SecondInputs {
  const T* of_x;
  const T* dy;
  const T* at;  // x of an activation, y of softmax
};

// For dx = y * (dy - <dy, y>) of a row, the derivatives of <of_x, dx> by dy and y. All [rows, entries].
template <typename T>
void softmax_second(const T* of_x, const T* dy, const T* y, int64_t rows, int64_t entries, T* by_dy, T* by_y);

}  // namespace vleak
