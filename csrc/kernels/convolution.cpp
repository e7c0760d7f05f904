#include "kernels/convolution.h"

#include <algorithm>

#include "kernels/convolution_few.h"
#include "kernels/convolution_run.h"
#include "kernels/depthwise.h"
#include "kernels/dispatch.h"
#include "kernels/parallel.h"
#include "kernels/winograd.h"

namespace vleak {
namespace {

// packed: scratch memory for the weights of this part, [rows * channels * taps].
template <typename T>
void run_part(const Schedule& schedule, const Planes& planes, const std::vector<WeightView<T>>& weights,
              T* packed, const T* copy, const std::vector<T>& bias, const View<T>& output) {
  const int64_t blocks = static_cast<int64_t>(schedule.row_blocks.size()) - 1;
  const int64_t rows = schedule.row_blocks.back(), depth = schedule.offsets.size();
  if (depth > 0) {
    parallel_for(blocks, grain_of(kCopyGrain, rows * depth / blocks), [&](int64_t begin, int64_t end) {
      int64_t channel = 0;
      for (const WeightView<T>& weight : weights) {
        pack_weight(schedule, weight, channel, planes.channels, begin, end, packed);
        channel += weight.channels;
      }
    });
  }
  const int64_t groups = schedule.groups.size(), lanes = cpu_kernels<T>().tile_limits().lanes;
  const int64_t work = rows * depth * static_cast<int64_t>(schedule.vectors.size()) * lanes;
  parallel_for(groups, grain_of(kSumGrain, work / std::max<int64_t>(1, groups)),
               [&](int64_t begin, int64_t end) {
                 run_groups(schedule, planes, packed, copy, bias.data(), begin, end, output);
               });
}

// Computes all parts of a sum over taps. The inputs are copied once, for all parts.
template <typename T>
void correlate(const std::vector<View<const T>>& inputs, const std::vector<WeightView<T>>& weights,
               const std::vector<Axes>& parts, const std::vector<T>& bias,
               const std::vector<View<T>>& outputs) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t channels = inputs[0].sizes[1], pairs = inputs.size(), rows = bias.size();
  const Planes planes = plan_planes(parts, inputs[0].sizes[0], channels * pairs, limits.lanes);
  const auto copy = scratch<T>(planes_entries(planes));
  for (int64_t pair = 0; pair < pairs; ++pair) {
    parallel_for(planes.batch * channels * planes.frames,
                 grain_of(kCopyGrain, planes.frame / planes.channels), [&](int64_t begin, int64_t end) {
                   copy_planes(planes, inputs[pair], pair * channels, begin, end, copy.get());
                 });
  }
  const auto& kernel = weights[0].kernel;
  const auto packed = scratch<T>(rows * planes.channels * kernel[0] * kernel[1] * kernel[2]);
  for (size_t part = 0; part < parts.size(); ++part) {
    const Schedule schedule = plan_schedule(parts[part], planes, rows, outputs[part].strides, limits);
    run_part(schedule, planes, weights, packed.get(), copy.get(), bias, outputs[part]);
  }
}

// weights: [out, channel, taps]. transposed: the rows are the channels.
template <typename T>
std::vector<WeightView<T>> weight_views(const std::vector<const T*>& weights, const ConvolutionShape& shape,
                                        bool transposed) {
  const int64_t taps = shape.kernel[0] * shape.kernel[1] * shape.kernel[2], a_row = shape.input[1] * taps;
  std::vector<WeightView<T>> views;
  for (const T* weight : weights) {
    views.push_back(transposed ? WeightView<T>{weight, shape.output[1], taps, a_row, shape.kernel}
                               : WeightView<T>{weight, shape.input[1], a_row, taps, shape.kernel});
  }
  return views;
}

std::array<int64_t, 3> spatial(const std::array<int64_t, 5>& sizes) { return {sizes[2], sizes[3], sizes[4]}; }

WinogradShape winograd_shape(const ConvolutionShape& shape, bool transposed) {
  std::array<int64_t, 3> padding = shape.padding;
  for (int i = 0; transposed && i < 3; ++i) padding[i] = shape.kernel[i] - 1 - padding[i];
  const auto &from = transposed ? shape.output : shape.input, &to = transposed ? shape.input : shape.output;
  return {from[0], from[1], to[1], shape.kernel[0], spatial(from), spatial(to), padding, transposed};
}

// The phases of the stride that input entries have: no more than there are entries.
std::array<int64_t, 3> phases_of(const ConvolutionShape& shape) {
  std::array<int64_t, 3> phases{};
  for (int i = 0; i < 3; ++i) phases[i] = std::min(shape.stride[i], shape.input[2 + i]);
  return phases;
}

std::vector<Axes> input_parts(const ConvolutionShape& shape) {
  std::vector<Axes> parts;
  const std::array<int64_t, 3> phases = phases_of(shape);
  for (int64_t t = 0; t < phases[0]; ++t) {
    for (int64_t i = 0; i < phases[1]; ++i) {
      for (int64_t j = 0; j < phases[2]; ++j)
        parts.push_back({backward_axis(shape, 0, t), backward_axis(shape, 1, i), backward_axis(shape, 2, j)});
    }
  }
  return parts;
}

// The parts as contiguous tensors, one after the other.
template <typename T>
std::vector<View<T>> part_views(const std::vector<Axes>& parts, const ConvolutionShape& shape, T* data) {
  std::vector<View<T>> views;
  for (const Axes& axes : parts) {
    views.push_back(
        contiguous_view(data, {shape.input[0], shape.input[1], axes[0].count, axes[1].count, axes[2].count}));
    data += shape.input[0] * views.back().strides[0];
  }
  return views;
}

}  // namespace

template <typename T>
void conv_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                 const ConvolutionShape& shape, T* y) {
  if (shape.depthwise) return depthwise_output(xs, ws, bias, shape, y);
  if (few_outputs(shape)) return few_output(xs, ws, bias, shape, y);
  const WinogradShape fast = winograd_shape(shape, false);
  if (winograd_pays<T>(fast, shape.kernel, shape.stride)) {
    return winograd(fast, xs, weight_views<T>(ws, shape, false), bias, y);
  }
  const Axes axes = {forward_axis(shape, 0), forward_axis(shape, 1), forward_axis(shape, 2)};
  std::vector<T> start(shape.output[1], T(0));
  if (bias) std::copy_n(bias, start.size(), start.begin());
  correlate<T>(xs, weight_views<T>(ws, shape, false), {axes}, start, {contiguous_view(y, shape.output)});
}

template <typename T>
void conv_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
                const ConvolutionShape& shape, T* dx) {
  if (shape.depthwise) return depthwise_input(dys, ws, shape, dx);
  if (few_outputs(shape)) return few_input(dys, ws, shape, dx);
  const WinogradShape fast = winograd_shape(shape, true);
  if (winograd_pays<T>(fast, shape.kernel, shape.stride)) {
    return winograd<T>(fast, dys, weight_views<T>(ws, shape, true), nullptr, dx);
  }
  const auto& sizes = shape.input;
  const std::vector<T> zeros(sizes[1], T(0));
  const std::vector<Axes> parts = input_parts(shape);
  const bool one_part = parts.size() == 1;
  const auto phases = scratch<T>(one_part ? 0 : sizes[0] * sizes[1] * channel_size(sizes));
  const std::vector<View<T>> views = part_views(parts, shape, one_part ? dx : phases.get());
  correlate<T>(dys, weight_views<T>(ws, shape, true), parts, zeros, views);
  if (one_part) return;
  parallel_for(sizes[0] * sizes[1] * sizes[2] * sizes[3], grain_of(kCopyGrain, sizes[4]),
               [&](int64_t begin, int64_t end) { weave(views, phases_of(shape), sizes, begin, end, dx); });
}

#define VLEAK_CONVOLUTION(T)                                                                              \
  template void conv_output<T>(const std::vector<View<const T>>&, const std::vector<const T*>&, const T*, \
                               const ConvolutionShape&, T*);                                              \
  template void conv_input<T>(const std::vector<View<const T>>&, const std::vector<const T*>&,            \
                              const ConvolutionShape&, T*);

VLEAK_CONVOLUTION(float)
VLEAK_CONVOLUTION(double)

}  // namespace vleak
