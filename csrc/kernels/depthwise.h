// Convolutions with one kernel a channel, and their two derivatives: the same sums as in convolution.h, with
// as many outputs as channels. The weights are [channel, taps].
#pragma once

#include "kernels/convolution.h"

namespace vleak {

template <typename T>
void depthwise_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                      const ConvolutionShape& shape, T* y);

template <typename T>
void depthwise_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
                     const ConvolutionShape& shape, T* dx);

// x and dy are contiguous.
template <typename T>
void depthwise_weight(const T* x, const T* dy, const T* start, const ConvolutionShape& shape, T* dw);

}  // namespace vleak
