// CPU implementations of the convolutions that vleak/bilinear.py declares.
#include <algorithm>
#include <array>

#include "bindings/bilinear.h"
#include "kernels/conv.h"
#include "kernels/dispatch.h"

namespace vleak {
namespace {

using Sizes = std::vector<int64_t>;

// ---------------------------------------------------------------------------------------------------------
// Two and three spatial axes alike

std::array<int64_t, 3> spatial(const Sizes& given, int64_t missing) {
  return given.size() == 3 ? std::array<int64_t, 3>{given[0], given[1], given[2]}
                           : std::array<int64_t, 3>{missing, given[0], given[1]};
}

std::array<int64_t, 5> five(const Sizes& given, int64_t missing) {
  const bool video = given.size() == 5;
  return {given[0], given[1], video ? given[2] : missing, given[given.size() - 2], given[given.size() - 1]};
}

Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

template <typename T>
View<const T> view(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.const_data_ptr<T>(), five(sizes_of(tensor), 1),
          five(Sizes(strides.begin(), strides.end()), 0)};
}

// Beyond these no padded input fits into memory, and products of sizes into 64 bits; see vleak/bilinear.py.
constexpr int64_t kLargestSize = (int64_t{1} << 31) - 1;
constexpr int64_t kLargestInput = int64_t{1} << 40;

struct Geometry {
  std::array<int64_t, 5> input;
  std::array<int64_t, 5> output;
  std::array<int64_t, 3> kernel;
  std::array<int64_t, 3> stride;
  std::array<int64_t, 3> padding;
};

// input: sizes of x; weight: sizes of w. Says also what y must be: the stride found does not tell.
Geometry geometry(const Sizes& input, const Sizes& weight, const Sizes& stride, const Sizes& padding) {
  check((input.size() == 4 || input.size() == 5) && weight.size() == input.size() &&
            stride.size() + 2 == input.size() && padding.size() + 2 == input.size(),
        "axes do not match");
  check(weight[1] == input[1] && input[1] > 0 && weight[0] > 0, "channels do not match");
  Geometry found{five(input, 1), five(input, 1), {}, spatial(stride, 1), spatial(padding, 0)};
  found.kernel = spatial(Sizes(weight.begin() + 2, weight.end()), 1);
  found.output[1] = weight[0];
  int64_t entries = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t size = found.input[2 + axis], kernel = found.kernel[axis];
    int64_t& stride = found.stride[axis];
    check(kernel > 0 && stride > 0 && found.padding[axis] >= 0, "bad kernel, stride or padding");
    check(size >= 0 && std::max({size, kernel, stride, found.padding[axis]}) <= kLargestSize,
          "a size is out of range");
    const int64_t padded = size + 2 * found.padding[axis];
    check(padded >= kernel, "the kernel is larger than the padded input");
    check(padded <= kLargestInput / std::max<int64_t>(1, entries), "the padded input is too large");
    entries *= padded;
    found.output[2 + axis] = (padded - kernel) / stride + 1;
    // Its only output is the same for every stride, but the phases of a large one would be planned each.
    if (found.output[2 + axis] == 1 && stride > kernel) stride = 1;
  }
  return found;
}

Sizes like_input(const std::array<int64_t, 5>& sizes, size_t axes) {
  if (axes == 5) return Sizes(sizes.begin(), sizes.end());
  return {sizes[0], sizes[1], sizes[3], sizes[4]};
}

void check_pairs(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights) {
  check(!inputs.empty() && inputs.size() == weights.size(), "lists differ in length");
  for (size_t i = 0; i < inputs.size(); ++i) {
    check_alike(inputs[i], inputs[0]);
    check_alike(weights[i], inputs[0]);
    check(sizes_of(inputs[i]) == sizes_of(inputs[0]) && sizes_of(weights[i]) == sizes_of(weights[0]),
          "pairs differ in shape");
  }
}

// ---------------------------------------------------------------------------------------------------------
// conv_output, conv_input

template <typename T>
View<T> dense_view(T* data, const std::array<int64_t, 5>& sizes) {
  std::array<int64_t, 5> strides{};
  for (int64_t axis = 4, step = 1; axis >= 0; step *= sizes[axis--]) strides[axis] = step;
  return {data, sizes, strides};
}

// weights: packed here, in room for rows * channels * taps.
template <typename T>
void run_part(const Schedule& schedule, const Planes& planes, const std::vector<WeightView<T>>& weights,
              T* packed, const T* copy, const std::vector<T>& bias, const View<T>& output) {
  const int64_t blocks = static_cast<int64_t>(schedule.row_blocks.size()) - 1;
  const int64_t rows = schedule.row_blocks.back(), depth = schedule.offsets.size();
  if (depth > 0) {
    parallel_for(0, blocks, grain(kCopyGrain, rows * depth / blocks), [&](int64_t begin, int64_t end) {
      int64_t channel = 0;
      for (const WeightView<T>& weight : weights) {
        pack_weight(schedule, weight, channel, planes.channels, begin, end, packed);
        channel += weight.channels;
      }
    });
  }
  const int64_t groups = schedule.groups.size(), lanes = cpu_kernels<T>().tile_limits().lanes;
  const int64_t work = rows * depth * static_cast<int64_t>(schedule.vectors.size()) * lanes;
  parallel_for(0, groups, grain(kSumGrain, work / std::max<int64_t>(1, groups)),
               [&](int64_t begin, int64_t end) {
                 run_groups(schedule, planes, packed, copy, bias.data(), begin, end, output);
               });
}

template <typename T>
void correlate(const std::vector<Tensor>& inputs, const std::vector<WeightView<T>>& weights,
               const std::vector<Axes>& parts, const std::vector<T>& bias,
               const std::vector<View<T>>& outputs) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const View<const T> first = view<T>(inputs[0]);
  const int64_t channels = first.sizes[1], pairs = inputs.size(), rows = bias.size();
  const Planes planes = plan_planes(parts, first.sizes[0], channels * pairs, limits.lanes);
  const auto copy = scratch<T>(planes_entries(planes));
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const View<const T> input = view<T>(inputs[pair]);
    parallel_for(0, planes.batch * channels * planes.frames,
                 grain(kCopyGrain, planes.frame / planes.channels), [&](int64_t begin, int64_t end) {
                   copy_planes(planes, input, pair * channels, begin, end, copy.get());
                 });
  }
  const auto& kernel = weights[0].kernel;
  const auto packed = scratch<T>(rows * planes.channels * kernel[0] * kernel[1] * kernel[2]);
  for (size_t part = 0; part < parts.size(); ++part) {
    const Schedule schedule = plan_schedule(parts[part], planes, rows, outputs[part].strides, limits);
    run_part(schedule, planes, weights, packed.get(), copy.get(), bias, outputs[part]);
  }
}

template <typename T>
std::vector<WeightView<T>> weight_views(const std::vector<Tensor>& weights, bool transposed) {
  std::vector<WeightView<T>> views;
  for (const Tensor& weight : weights) {
    const Sizes sizes = sizes_of(weight);
    const auto kernel = spatial(Sizes(sizes.begin() + 2, sizes.end()), 1);
    const int64_t taps = kernel[0] * kernel[1] * kernel[2], a_row = sizes[1] * taps;
    const T* data = weight.const_data_ptr<T>();
    views.push_back(transposed ? WeightView<T>{data, sizes[0], taps, a_row, kernel}
                               : WeightView<T>{data, sizes[1], a_row, taps, kernel});
  }
  return views;
}

Tensor conv_output(std::vector<Tensor> xs, std::vector<Tensor> ws, std::optional<Tensor> bias, Sizes stride,
                   Sizes padding) {
  check_pairs(xs, ws);
  const Geometry g = geometry(sizes_of(xs[0]), sizes_of(ws[0]), stride, padding);
  ws = dense(ws);
  if (bias.has_value()) {
    check_alike(*bias, xs[0]);
    check(bias->dim() == 1 && bias->size(0) == g.output[1], "bias does not match");
    bias = dense(*bias);
  }
  const Tensor output = new_contiguous(xs[0], like_input(g.output, xs[0].dim()));
  if (output.numel() == 0) return output;
  Axes axes;
  for (int i = 0; i < 3; ++i) {
    axes[i] = forward_axis(g.input[2 + i], g.kernel[i], g.stride[i], g.padding[i]);
    axes[i].count = g.output[2 + i];
  }
  with_type(xs[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> add(g.output[1], T(0));
    if (bias.has_value()) std::copy_n(bias->const_data_ptr<T>(), add.size(), add.begin());
    correlate<T>(xs, weight_views<T>(ws, false), {axes}, add,
                 {dense_view(output.mutable_data_ptr<T>(), g.output)});
  });
  return output;
}

// Phases of the stride that an entry of the input has: of a stride above the input, no more than entries.
std::array<int64_t, 3> phases_of(const Geometry& g) {
  std::array<int64_t, 3> phases{};
  for (int i = 0; i < 3; ++i) phases[i] = std::min(g.stride[i], g.input[2 + i]);
  return phases;
}

std::vector<Axes> input_parts(const Geometry& g) {
  std::vector<Axes> parts;
  const std::array<int64_t, 3> phases = phases_of(g);
  const auto axis = [&](int i, int64_t phase) {
    Axis found = backward_axis(g.input[2 + i], g.kernel[i], g.stride[i], g.padding[i], phase);
    found.size = g.output[2 + i];
    return found;
  };
  for (int64_t t = 0; t < phases[0]; ++t) {
    for (int64_t i = 0; i < phases[1]; ++i) {
      for (int64_t j = 0; j < phases[2]; ++j) parts.push_back({axis(0, t), axis(1, i), axis(2, j)});
    }
  }
  return parts;
}

// Each part dense, one after the other.
template <typename T>
std::vector<View<T>> part_views(const std::vector<Axes>& parts, const Geometry& g, T* data) {
  std::vector<View<T>> views;
  for (const Axes& axes : parts) {
    views.push_back(dense_view(data, {g.input[0], g.input[1], axes[0].count, axes[1].count, axes[2].count}));
    data += g.input[0] * views.back().strides[0];
  }
  return views;
}

template <typename T>
void weave_parts(const std::vector<View<T>>& parts, const Geometry& g, const Tensor& output) {
  std::vector<const T*> from;
  for (const View<T>& part : parts) from.push_back(part.data);
  const int64_t lines = output.numel() / g.input[4];
  parallel_for(0, lines, grain(kCopyGrain, g.input[4]), [&](int64_t begin, int64_t end) {
    weave(from, phases_of(g), g.input, begin, end, output.mutable_data_ptr<T>());
  });
}

Tensor conv_input(std::vector<Tensor> dys, std::vector<Tensor> ws, Sizes input_shape, Sizes stride,
                  Sizes padding) {
  check_pairs(dys, ws);
  const Geometry g = geometry(input_shape, sizes_of(ws[0]), stride, padding);
  check(sizes_of(dys[0]) == like_input(g.output, input_shape.size()), "dys do not match input_shape");
  ws = dense(ws);
  const Tensor output = new_contiguous(dys[0], input_shape);
  if (output.numel() == 0) return output;
  with_type(dys[0], [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> zeros(g.input[1], T(0));
    const std::vector<Axes> parts = input_parts(g);
    T* result = output.mutable_data_ptr<T>();
    const bool whole = parts.size() == 1;
    const auto phases = scratch<T>(whole ? 0 : output.numel());
    const std::vector<View<T>> views = part_views(parts, g, whole ? result : phases.get());
    correlate<T>(dys, weight_views<T>(ws, true), parts, zeros, views);
    if (!whole) weave_parts(views, g, output);
  });
  return output;
}

// ---------------------------------------------------------------------------------------------------------
// conv_weight

Tensor conv_weight(Tensor x, Tensor dy, Sizes kernel, Sizes stride, Sizes padding) {
  check_alike(dy, x);
  check(x.dim() == dy.dim() && (x.dim() == 4 || x.dim() == 5), "axes do not match");
  Sizes shape = {dy.size(1), x.size(1)};
  shape.insert(shape.end(), kernel.begin(), kernel.end());
  const Geometry g = geometry(sizes_of(x), shape, stride, padding);
  check(sizes_of(dy) == like_input(g.output, x.dim()), "dy does not match x");
  x = dense(x);
  dy = dense(dy);
  const Tensor result = new_contiguous(x, shape);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const WeightProblem problem = {g.kernel, g.stride, g.padding, g.input, g.output};
    const WeightSchedule schedule = plan_weight(problem, cpu_kernels<T>().tile_limits());
    const auto pixels = scratch<T>(pixels_entries(schedule)), sums = scratch<T>(g.output[1] * schedule.a_row);
    const int64_t frames = g.input[0] * g.input[2];
    parallel_for(0, frames, grain(kCopyGrain, pixels_entries(schedule) / std::max<int64_t>(1, frames)),
                 [&](int64_t begin, int64_t end) {
                   copy_pixels(schedule, x.const_data_ptr<T>(), begin, end, pixels.get());
                 });
    const int64_t blocks = static_cast<int64_t>(schedule.row_blocks.size()) - 1;
    const int64_t each = dy.numel() * schedule.a_row / blocks;
    parallel_for(0, blocks, grain(kSumGrain, each), [&](int64_t begin, int64_t end) {
      run_weight(schedule, pixels.get(), dy.const_data_ptr<T>(), begin, end, sums.get(),
                 result.mutable_data_ptr<T>());
    });
  });
  return result;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("conv_output", TORCH_BOX(&vleak::conv_output));
  library.impl("conv_input", TORCH_BOX(&vleak::conv_input));
  library.impl("conv_weight", TORCH_BOX(&vleak::conv_weight));
}
