// Convolutions of which few outputs are read, as behind a max pooling, and their derivatives where few
// outputs have one: the same sums as in convolution.h, at some outputs of every channel only.
//
// No result depends on the number of threads.
#pragma once

#include "kernels/convolution.h"

namespace vleak {

// Some outputs of every channel.
struct Places {
  const int64_t* data;  // [clip, out, count], numbers of outputs: (frame * rows + row) * columns + column
  int64_t count;
  int64_t row;  // places that lie side by side, as a rule; results do not depend on it
};

// y [clip, out, count] = sum over pairs of conv(x, w) there, plus the bias. xs and ws are contiguous; bias:
// [out] or null.
template <typename T>
void sparse_conv_output(const std::vector<const T*>& xs, const std::vector<const T*>& ws, const T* bias,
                        const ConvolutionShape& shape, const Places& places, T* y);

// dx = sum over pairs of the transposed convolution of dy with w, where dy [clip, out, count] is the
// derivative by these outputs and 0 for all others.
template <typename T>
void sparse_conv_input(const std::vector<const T*>& dys, const std::vector<const T*>& ws,
                       const ConvolutionShape& shape, const Places& places, T* dx);

// dw [out, channel, taps], summed over the clips. x is contiguous.
template <typename T>
void sparse_conv_weight(const T* x, const T* dy, const ConvolutionShape& shape, const Places& places, T* dw);

}  // namespace vleak
