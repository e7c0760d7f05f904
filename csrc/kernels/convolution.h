// Convolutions in two and three dimensions and their two derivatives, on the register tiles of tile.h. With
// two spatial axes, the frame axis has size 1, kernel 1, stride 1 and padding 0.
//
// No result depends on the number of threads.
#pragma once

#include <algorithm>
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

template <typename T>
View<T> contiguous_view(T* data, const std::array<int64_t, 5>& sizes) {
  View<T> view{data, sizes, {}};
  for (int64_t axis = 4, step = 1; axis >= 0; step *= sizes[axis--]) view.strides[axis] = step;
  return view;
}

// Entries of one channel of one clip.
inline int64_t channel_size(const std::array<int64_t, 5>& sizes) { return sizes[2] * sizes[3] * sizes[4]; }

struct Range {  // [begin, end)
  int64_t begin;
  int64_t end;

  bool operator==(const Range&) const = default;
};

// Those i of [0, count) for which first + i * step lies in [0, size).
inline Range inside(int64_t first, int64_t step, int64_t size, int64_t count) {
  const auto reached = [&](int64_t at) { return divide_up(std::max<int64_t>(0, at - first), step); };
  const int64_t begin = std::min(reached(0), count);
  return {begin, std::clamp(reached(size), begin, count)};
}

// Of the convolution itself, for its derivatives too.
struct ConvolutionShape {
  std::array<int64_t, 5> input;   // sizes of x: [clip, channel, frame, row, column]
  std::array<int64_t, 5> output;  // sizes of y
  std::array<int64_t, 3> kernel;  // frames, rows, columns
  std::array<int64_t, 3> stride;
  std::array<int64_t, 3> padding;
  bool depthwise;  // every channel has a kernel of its own: weights are [channel, taps]
};

// A weight, read as data[row * row_stride + channel * channel_stride + offset in the kernel].
template <typename T>
struct WeightView {
  const T* data;
  int64_t channels;
  int64_t row_stride;
  int64_t channel_stride;
  std::array<int64_t, 3> kernel;
};

// y = sum over pairs of conv(x, w), plus the bias. ws: contiguous, [out, channel, taps]; bias: [out] or null.
template <typename T>
void conv_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                 const ConvolutionShape& shape, T* y);

// dx = sum over pairs of the transposed convolution of dy with w.
template <typename T>
void conv_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
                const ConvolutionShape& shape, T* dx);

// dw [out, channel, taps], summed over pairs and clips, plus start, which may be null. All are contiguous.
template <typename T>
void conv_weight(const std::vector<const T*>& xs, const std::vector<const T*>& dys, const T* start,
                 const ConvolutionShape& shape, T* dw);

}  // namespace vleak
