// Convolutions in two and three dimensions and their two derivatives, on the register tiles of tile.h. With
// two spatial axes, the frame axis has size 1, kernel 1, stride 1 and padding 0.
//
// No result depends on the number of threads.
#pragma once

#include <array>
#include <vector>

#include "kernels/common.h"

namespace vleak {

// A view of a tensor [clip, channel, frame, row, column], strides in entries.
template <typename T>
struct View {
  T* data;
  std::array<int64_t, 5> sizes;
  std::array<int64_t, 5> strides;
};

// Of the convolution itself, for its derivatives too.
struct ConvolutionShape {
  std::array<int64_t, 5> input;   // sizes of x: [clip, channel, frame, row, column]
  std::array<int64_t, 5> output;  // sizes of y
  std::array<int64_t, 3> kernel;  // frames, rows, columns
  std::array<int64_t, 3> stride;
  std::array<int64_t, 3> padding;
};

// y = sum over pairs of conv(x, w), plus the bias. ws: contiguous, [out, channel, taps]; bias: [out] or null.
template <typename T>
void conv_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                 const ConvolutionShape& shape, T* y);

// dx = sum over pairs of the transposed convolution of dy with w.
template <typename T>
void conv_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
                const ConvolutionShape& shape, T* dx);

// dw [out, channel, taps], summed over the clips, plus start, which may be null. All are contiguous.
template <typename T>
void conv_weight(const T* x, const T* dy, const T* start, const ConvolutionShape& shape, T* dw);

}  // namespace vleak
