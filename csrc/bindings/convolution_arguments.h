// Unpacking of the arguments of convolutions, dense and sparse.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "bindings/arguments.h"
#include "kernels/convolution.h"

namespace vleak {

// ---------------------------------------------------------------------------------------------------------
// Two spatial axes as three: the frame axis is added

inline std::array<int64_t, 3> spatial(const Sizes& values, int64_t missing) {
  return values.size() == 3 ? std::array<int64_t, 3>{values[0], values[1], values[2]}
                            : std::array<int64_t, 3>{missing, values[0], values[1]};
}

inline std::array<int64_t, 5> five(const Sizes& values, int64_t missing) {
  const size_t last = values.size() - 1;
  return {values[0], values[1], last == 4 ? values[2] : missing, values[last - 1], values[last]};
}

// Sizes with as many axes as the tensors have.
inline Sizes without_added_axis(const std::array<int64_t, 5>& sizes, size_t axes) {
  if (axes == 5) return Sizes(sizes.begin(), sizes.end());
  return {sizes[0], sizes[1], sizes[3], sizes[4]};
}

template <typename T>
std::vector<View<const T>> views(const std::vector<Tensor>& tensors) {
  std::vector<View<const T>> result;
  for (const Tensor& tensor : tensors) {
    const auto strides = tensor.strides();
    result.push_back({tensor.const_data_ptr<T>(), five(sizes_of(tensor), 1),
                      five(Sizes(strides.begin(), strides.end()), 0)});
  }
  return result;
}

template <typename T>
std::vector<const T*> pointers(const std::vector<Tensor>& tensors) {
  std::vector<const T*> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.const_data_ptr<T>());
  return result;
}

// ---------------------------------------------------------------------------------------------------------
// Checks

// Larger padded inputs fit into no memory, and products of larger sizes not into 64 bits. The same limits as
// in vleak/native/convolution.py.
inline constexpr int64_t kLargestSize = (int64_t{1} << 31) - 1;
inline constexpr int64_t kLargestInput = int64_t{1} << 40;

// Checks one spatial axis and sets its output size. entries: of the padded input so far.
inline void add_axis(ConvolutionShape& shape, int axis, int64_t& entries) {
  const int64_t size = shape.input[2 + axis], kernel = shape.kernel[axis], padding = shape.padding[axis];
  int64_t& stride = shape.stride[axis];
  check(kernel > 0 && stride > 0 && padding >= 0, "bad kernel, stride or padding");
  check(size >= 0 && std::max({size, kernel, stride, padding}) <= kLargestSize, "a size is out of range");
  const int64_t padded = size + 2 * padding;
  check(padded >= kernel, "the kernel is larger than the padded input");
  check(padded <= kLargestInput / std::max<int64_t>(1, entries), "the padded input is too large");
  entries *= padded;
  shape.output[2 + axis] = (padded - kernel) / stride + 1;
  // A single output is the same for every stride; but every phase of a large stride would get a plan.
  if (shape.output[2 + axis] == 1 && stride > kernel) stride = 1;
}

// input: sizes of x; weight: sizes of w.
inline ConvolutionShape convolution_shape(const Sizes& input, const Sizes& weight, const Sizes& stride,
                                          const Sizes& padding) {
  check((input.size() == 4 || input.size() == 5) && weight.size() == input.size() &&
            stride.size() + 2 == input.size() && padding.size() + 2 == input.size(),
        "axes do not match");
  const bool depthwise = input[1] > 1 && weight[1] == 1 && weight[0] == input[1];
  check((weight[1] == input[1] || depthwise) && input[1] > 0 && weight[0] > 0, "channels do not match");
  ConvolutionShape shape{
      five(input, 1),     five(input, 1),      spatial(Sizes(weight.begin() + 2, weight.end()), 1),
      spatial(stride, 1), spatial(padding, 0), depthwise};
  shape.output[1] = weight[0];
  int64_t entries = 1;
  for (int axis = 0; axis < 3; ++axis) add_axis(shape, axis, entries);
  return shape;
}

// The tensor as contiguous memory, if there is one.
inline std::optional<Tensor> checked(const std::optional<Tensor>& tensor, const Tensor& like,
                                     const Sizes& sizes, const char* name) {
  if (!tensor.has_value()) return {};
  check_kind(*tensor, like, name);
  check(sizes_of(*tensor) == sizes, name, " does not match in shape");
  return as_contiguous(*tensor);
}

inline void check_pairs(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights) {
  check_lists(inputs, weights);
  for (size_t i = 0; i < inputs.size(); ++i) {
    check(sizes_of(inputs[i]) == sizes_of(inputs[0]) && sizes_of(weights[i]) == sizes_of(weights[0]),
          "pairs differ in shape");
  }
}

}  // namespace vleak
