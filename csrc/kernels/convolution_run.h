// The steps of a planned convolution. Every step works on a range of independent pieces, which the caller
// spreads over threads; no result depends on the ranges.
#pragma once

#include "kernels/convolution.h"
#include "kernels/convolution_plan.h"

namespace vleak {

// begin, end: planes of [image * channel * frame] of one input, whose channels start at `first_channel`.
template <typename T>
void copy_planes(const Planes& planes, const View<const T>& input, int64_t first_channel, int64_t begin,
                 int64_t end, T* copy);

// A weight, read as data[row * row_stride + channel * channel_stride + offset in the kernel].
template <typename T>
struct WeightView {
  const T* data;
  int64_t channels;
  int64_t row_stride;
  int64_t channel_stride;
  std::array<int64_t, 3> kernel;
};

// begin, end: blocks of rows. Packed as [block][frame tap, channel, row tap, column tap][row of the block];
// the weight's channels start at `first_channel` of `channels`.
template <typename T>
void pack_weight(const Schedule& schedule, const WeightView<T>& weight, int64_t first_channel,
                 int64_t channels, int64_t begin, int64_t end, T* packed);

// begin, end: groups. bias: [row]. output is contiguous.
template <typename T>
void run_groups(const Schedule& schedule, const Planes& planes, const T* packed, const T* copy, const T* bias,
                int64_t begin, int64_t end, const View<T>& output);

// Interleaves the tensors of all phases: part [frame phase, row phase, column phase] holds every strides-th
// entry from that phase on. begin, end: lines of [image * channel * frame * row].
template <typename T>
void weave(const std::vector<const T*>& parts, const std::array<int64_t, 3>& strides,
           const std::array<int64_t, 5>& sizes, int64_t begin, int64_t end, T* output);

}  // namespace vleak
