// Convolutions with few outputs and many weights, as products with the unfolded input: packing the weights,
// or the sums of their derivative, would cost more than the sums.
#pragma once

#include "kernels/convolution.h"

namespace vleak {

// Whether there are so few outputs, for so many weights, that it pays.
bool few_outputs(const ConvolutionShape& shape);

template <typename T>
void few_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                const ConvolutionShape& shape, T* y);

template <typename T>
void few_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
               const ConvolutionShape& shape, T* dx);

// x and dy are contiguous.
template <typename T>
void few_weight(const T* x, const T* dy, const T* start, const ConvolutionShape& shape, T* dw);

}  // namespace vleak
