// Unpacking of arguments, shared by all bindings.
//
// The Python functions in vleak.native check every argument and explain what is wrong. The checks here are
// for direct calls of an operator, which must fail and not crash.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/common.h"

namespace vleak {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

template <typename... What>
void check(bool holds, const What&... what) {
  STD_TORCH_CHECK(holds, "vleak: ", what..., "; call the function in vleak.native, which says why");
}

inline void check_kind(const Tensor& tensor, const Tensor& like, const char* name,
                       std::optional<ScalarType> type = {}) {
  check(tensor.scalar_type() == type.value_or(like.scalar_type()) && tensor.device() == like.device(), name,
        " does not match in dtype or device");
}

inline void check_like(const Tensor& tensor, const Tensor& like, const char* name,
                       std::optional<ScalarType> type = {}) {
  check_kind(tensor, like, name, type);
  check(tensor.numel() == like.numel(), name, " does not match in size");
}

inline void check_lists(const std::vector<Tensor>& xs, const std::vector<Tensor>& ys) {
  check(!xs.empty() && xs.size() == ys.size(), "lists differ in length");
  for (const auto* list : {&xs, &ys})
    for (const Tensor& tensor : *list) check_kind(tensor, xs[0], "a tensor of a list");
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

inline ClipSize clip_size(const Tensor& x) {
  check(x.dim() == 5, "expected five axes (clip, channel, frame, height, width)");
  return {x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)};
}

// The tensor itself where it is contiguous, else a copy.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A tensor of these sizes and of the type of another one, as contiguous memory.
inline Tensor shaped(const Tensor& tensor, const Sizes& sizes, const Tensor& like, const char* name) {
  check_kind(tensor, like, name);
  check(sizes_of(tensor) == sizes, name, " does not match in shape");
  return as_contiguous(tensor);
}

inline Tensor alike(const Tensor& tensor, const Tensor& like, const char* name) {
  return shaped(tensor, sizes_of(like), like, name);
}

inline std::vector<Tensor> as_contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  result.reserve(tensors.size());
  for (const Tensor& tensor : tensors) result.push_back(as_contiguous(tensor));
  return result;
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(as_contiguous(*tensor)) : std::nullopt;
}

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

inline Tensor new_contiguous(const Tensor& like, const Sizes& sizes, std::optional<ScalarType> type = {}) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()),
                                  type);
}

inline Tensor new_contiguous(const Tensor& like) { return new_contiguous(like, sizes_of(like)); }

// Calls run<T>() for the type of the tensor.
template <typename Run>
void with_type(const Tensor& tensor, Run run) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "expected float32 or float64");
  if (type == ScalarType::Float) {
    run.template operator()<float>();
  } else {
    run.template operator()<double>();
  }
}

}  // namespace vleak
