// Convolutions with 3x3 kernels in space and stride 1, by Winograd's minimal filtering F(2x2, 3x3) (Lavin and
// Gray, CVPR 2016, arXiv 1509.09308): tiles of 2x2 outputs cost 16 products a tap in time where the plain sum
// takes 36. Frames are summed over plainly.
#pragma once

#include "kernels/convolution.h"

namespace vleak {

// A correlation with stride 1: in[channel][frame + t - padding] and so on, times the taps of weight views.
struct WinogradShape {
  int64_t images;
  int64_t channels;              // of one pair
  int64_t rows;                  // output channels
  int64_t taps;                  // in time
  std::array<int64_t, 3> input;  // frames, rows, columns
  std::array<int64_t, 3> output;
  std::array<int64_t, 3> padding;
  bool flipped;  // taps count from the end
};

// Whether it pays: tiles must fill vectors, and serve for the transformed weights often enough.
template <typename T>
bool winograd_pays(const WinogradShape& shape, const std::array<int64_t, 3>& kernel,
                   const std::array<int64_t, 3>& stride);

// output: [image][row][frame][row][column], contiguous; bias: [row] or null.
template <typename T>
void winograd(const WinogradShape& shape, const std::vector<View<const T>>& inputs,
              const std::vector<WeightView<T>>& weights, const T* bias, T* output);

}  // namespace vleak
