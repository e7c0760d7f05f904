// What the convolutions and products of vleak/bilinear.py share.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "bindings/arguments.h"

namespace vleak {

using torch::stable::parallel_for;

// A thread is worth waking for about this many entries copied, or multiplications.
constexpr int64_t kCopyGrain = 32768;
constexpr int64_t kSumGrain = 1 << 20;

inline int64_t grain(int64_t worth, int64_t each) {
  return std::max<int64_t>(1, worth / std::max<int64_t>(1, each));
}

// Scratch space, uninitialized: a tensor would cost a call of the dispatcher.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t entries) {
  return std::unique_ptr<T[]>(new T[entries]);
}

// These hold for every call through vleak.bilinear; a direct call of the operator must fail too, not crash.
inline void check(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "vleak: ", what, "; call the function in vleak.bilinear, which says why");
}

inline void check_alike(const Tensor& tensor, const Tensor& like) {
  check(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(),
        "tensors differ in kind");
}

}  // namespace vleak
