// CPU implementations of the operators that vleak/bilinear.py declares.
#include <algorithm>
#include <array>

#include "bindings/arguments.h"
#include "kernels/conv.h"
#include "kernels/dispatch.h"

namespace vleak {
namespace {

using torch::stable::parallel_for;
using Sizes = std::vector<int64_t>;

// A thread is worth waking for about this many entries copied, or multiplications.
constexpr int64_t kCopyGrain = 32768;
constexpr int64_t kSumGrain = 1 << 20;

int64_t grain(int64_t worth, int64_t each) {
  return std::max<int64_t>(1, worth / std::max<int64_t>(1, each));
}

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

template <typename T>
View<T> output_view(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.mutable_data_ptr<T>(), five(sizes_of(tensor), 1),
          five(Sizes(strides.begin(), strides.end()), 0)};
}

// ---------------------------------------------------------------------------------------------------------
// These hold for every call through vleak.bilinear; a direct call of the operator must fail too, not crash.

void check(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "vleak: ", what, "; call the function in vleak.bilinear, which says why");
}

void check_alike(const Tensor& tensor, const Tensor& like) {
  check(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(),
        "tensors differ in kind");
}

struct Geometry {
  std::array<int64_t, 5> input;
  std::array<int64_t, 5> output;
  std::array<int64_t, 3> kernel;
  std::array<int64_t, 3> stride;
  std::array<int64_t, 3> padding;
};

// input: sizes of x; weight: sizes of w. Says also what y must be.
Geometry geometry(const Sizes& input, const Sizes& weight, const Sizes& stride, const Sizes& padding) {
  check((input.size() == 4 || input.size() == 5) && weight.size() == input.size() &&
            stride.size() + 2 == input.size() && padding.size() + 2 == input.size(),
        "axes do not match");
  check(weight[1] == input[1] && input[1] > 0 && weight[0] > 0, "channels do not match");
  Geometry found{five(input, 1), five(input, 1), {}, spatial(stride, 1), spatial(padding, 0)};
  found.kernel = spatial(Sizes(weight.begin() + 2, weight.end()), 1);
  found.output[1] = weight[0];
  for (int axis = 0; axis < 3; ++axis) {
    check(found.kernel[axis] > 0 && found.stride[axis] > 0 && found.padding[axis] >= 0,
          "bad kernel, stride or padding");
    const int64_t room = found.input[2 + axis] + 2 * found.padding[axis] - found.kernel[axis];
    check(room >= 0, "the kernel is larger than the padded input");
    found.output[2 + axis] = room / found.stride[axis] + 1;
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
void run_part(const Schedule& schedule, const Planes& planes, const std::vector<WeightView<T>>& weights,
              const T* copy, const T* bias, const Tensor& output) {
  const int64_t blocks = static_cast<int64_t>(schedule.row_blocks.size()) - 1;
  const int64_t rows = schedule.row_blocks.back(), depth = schedule.offsets.size();
  const Tensor packed = new_contiguous(output, {rows * depth});
  T* to = packed.mutable_data_ptr<T>();
  if (depth > 0) {
    parallel_for(0, blocks, grain(kCopyGrain, rows * depth / blocks), [&](int64_t begin, int64_t end) {
      int64_t channel = 0;
      for (const WeightView<T>& weight : weights) {
        pack_weight(schedule, weight, channel, planes.channels, begin, end, to);
        channel += weight.channels;
      }
    });
  }
  const int64_t groups = schedule.groups.size();
  const int64_t each = rows * depth * schedule.vectors.size() * cpu_kernels<T>().tile_limits().lanes /
                       std::max<int64_t>(1, groups);
  const View<T> result = output_view<T>(output);
  parallel_for(0, groups, grain(kSumGrain, each), [&](int64_t begin, int64_t end) {
    run_groups(schedule, planes, to, copy, bias, begin, end, result);
  });
}

template <typename T>
void correlate(const std::vector<Tensor>& inputs, const std::vector<WeightView<T>>& weights,
               const std::vector<Axes>& parts, const T* bias, const Tensor& output) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const View<const T> first = view<T>(inputs[0]);
  const int64_t channels = first.sizes[1], pairs = inputs.size();
  const Planes planes = plan_planes(parts, first.sizes[0], channels * pairs, limits.lanes);
  const Tensor copy = new_contiguous(inputs[0], {planes_entries(planes)});
  T* to = copy.mutable_data_ptr<T>();
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const View<const T> input = view<T>(inputs[pair]);
    parallel_for(
        0, planes.batch * channels * planes.frames, grain(kCopyGrain, plane_size(planes)),
        [&](int64_t begin, int64_t end) { copy_planes(planes, input, pair * channels, begin, end, to); });
  }
  for (const Axes& axes : parts) {
    const Schedule schedule = plan_schedule(axes, planes, output.size(1), limits);
    run_part(schedule, planes, weights, to, bias, output);
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
  for (int i = 0; i < 3; ++i) axes[i] = forward_axis(g.input[2 + i], g.kernel[i], g.stride[i], g.padding[i]);
  with_type(xs[0], [&](auto zero) {
    using T = decltype(zero);
    const T* add = bias.has_value() ? bias->const_data_ptr<T>() : nullptr;
    correlate<T>(xs, weight_views<T>(ws, false), {axes}, add, output);
  });
  return output;
}

std::vector<Axes> input_parts(const Geometry& g) {
  std::vector<Axes> parts;
  const auto axis = [&](int i, int64_t phase) {
    return backward_axis(g.input[2 + i], g.kernel[i], g.stride[i], g.padding[i], phase);
  };
  for (int64_t t = 0; t < std::min(g.stride[0], g.input[2]); ++t) {
    for (int64_t i = 0; i < std::min(g.stride[1], g.input[3]); ++i) {
      for (int64_t j = 0; j < std::min(g.stride[2], g.input[4]); ++j) {
        parts.push_back({axis(0, t), axis(1, i), axis(2, j)});
      }
    }
  }
  return parts;
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
    correlate<T>(dys, weight_views<T>(ws, true), input_parts(g), static_cast<const T*>(nullptr), output);
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
  dy = dense(dy);
  const Tensor result = new_contiguous(x, shape);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const WeightProblem problem = {g.kernel, g.stride, g.padding, g.input, g.output};
    const WeightSchedule schedule = plan_weight(problem, cpu_kernels<T>().tile_limits());
    const View<const T> input = view<T>(x);
    const Tensor pixels = new_contiguous(x, {pixels_entries(schedule)}),
                 sums = new_contiguous(x, {schedule.sums});
    T* copy = pixels.mutable_data_ptr<T>();
    const int64_t frames = g.input[0] * g.input[2];
    parallel_for(0, frames, grain(kCopyGrain, pixels_entries(schedule) / std::max<int64_t>(1, frames)),
                 [&](int64_t begin, int64_t end) { copy_pixels(schedule, input, begin, end, copy); });
    const int64_t blocks = static_cast<int64_t>(schedule.row_blocks.size()) - 1;
    const int64_t each = dy.numel() * schedule.sums / g.output[1] / blocks;
    parallel_for(0, blocks, grain(kSumGrain, each), [&](int64_t begin, int64_t end) {
      run_weight(schedule, copy, dy.const_data_ptr<T>(), begin, end, sums.mutable_data_ptr<T>(),
                 result.mutable_data_ptr<T>());
    });
  });
  return result;
}

// ---------------------------------------------------------------------------------------------------------
// product

// Columns that are packed together, on every instruction set; and depth that is taken at once.
constexpr int64_t kPanel = 32;
constexpr int64_t kDepth = 256;

template <typename T>
void pack_panel(const T* m, int64_t columns, int64_t depth, int64_t panel, T* packed) {
  const int64_t first = panel * kPanel, count = std::min(kPanel, columns - first);
  T* to = packed + first * depth;
  for (int64_t k = 0; k < depth; ++k, to += kPanel) {
    for (int64_t i = 0; i < count; ++i) to[i] = m[(first + i) * depth + k];
    std::fill(to + count, to + kPanel, T(0));
  }
}

Tensor pack_rows(Tensor m) {
  check(m.dim() == 2, "expected a matrix");
  m = dense(m);
  const int64_t columns = m.size(0), depth = m.size(1), panels = divide_up(columns, kPanel);
  const Tensor packed = new_contiguous(m, {panels, depth, kPanel});
  with_type(m, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(0, panels, grain(kCopyGrain, depth * kPanel), [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        pack_panel(m.const_data_ptr<T>(), columns, depth, panel, packed.mutable_data_ptr<T>());
      }
    });
  });
  return packed;
}

// x as [depth piece][block of rows][depth][row]
template <typename T>
void pack_left(const T* x, int64_t depth, const std::vector<int64_t>& blocks, T* packed) {
  for (int64_t start = 0; start < depth; start += kDepth) {
    const int64_t end = std::min(depth, start + kDepth);
    for (size_t block = 0; block + 1 < blocks.size(); ++block) {
      for (int64_t k = start; k < end; ++k) {
        for (int64_t row = blocks[block]; row < blocks[block + 1]; ++row) *packed++ = x[row * depth + k];
      }
    }
  }
}

struct ProductPlan {
  int64_t rows, depth, columns, lanes, vectors;
  std::vector<int64_t> blocks;
};

ProductPlan plan_product(int64_t rows, int64_t depth, int64_t columns, const TileLimits& limits) {
  const int64_t vectors = std::min(best_vectors(rows, kPanel / limits.lanes, limits), kPanel / limits.lanes);
  return {rows, depth, columns, limits.lanes, vectors, cut_rows(rows, most_rows(vectors, limits))};
}

template <typename T>
void multiply_panel(const ProductPlan& plan, const T* left, const T* panel, T* sums) {
  const int64_t held = kPanel / plan.lanes;
  int64_t offsets[kDepth], bases[kPanel];
  for (int64_t k = 0; k < kDepth; ++k) offsets[k] = k * kPanel;
  std::fill(sums, sums + plan.rows * kPanel, T(0));
  for (int64_t start = 0; start < plan.depth; start += kDepth) {
    const int64_t count = std::min(kDepth, plan.depth - start);
    for (int64_t vector = 0; vector < held; vector += plan.vectors) {
      const int64_t vectors = std::min(plan.vectors, held - vector);
      for (int64_t v = 0; v < vectors; ++v) bases[v] = (vector + v) * plan.lanes;
      for (size_t block = 0; block + 1 < plan.blocks.size(); ++block) {
        const int64_t first = plan.blocks[block], rows = plan.blocks[block + 1] - first;
        cpu_kernels<T>().tile(rows, vectors)(left + start * plan.rows + first * count, panel + start * kPanel,
                                             offsets, count, bases,
                                             sums + (vector * plan.rows + first * vectors) * plan.lanes);
      }
    }
  }
}

template <typename T>
void store_panel(const ProductPlan& plan, const T* sums, int64_t panel, T* result) {
  const int64_t first = panel * kPanel, held = kPanel / plan.lanes;
  for (int64_t vector = 0; vector < held; vector += plan.vectors) {
    const int64_t width = std::min(plan.vectors, held - vector) * plan.lanes;
    const int64_t column = first + vector * plan.lanes, count = std::min(width, plan.columns - column);
    for (int64_t row = 0; row < plan.rows && count > 0; ++row) {
      std::copy_n(sums + vector * plan.rows * plan.lanes + row * width, count,
                  result + row * plan.columns + column);
    }
  }
}

Tensor product(Tensor x, Tensor packed, int64_t columns) {
  check(x.dim() == 2 && packed.dim() == 3 && packed.size(2) == kPanel && packed.size(1) == x.size(1) &&
            columns >= 0 && packed.size(0) == divide_up(columns, kPanel),
        "x, packed and columns do not match");
  check_alike(packed, x);
  x = dense(x);
  packed = dense(packed);
  const Tensor result = new_contiguous(x, {x.size(0), columns});
  if (result.numel() == 0) return result;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const ProductPlan plan = plan_product(x.size(0), x.size(1), columns, cpu_kernels<T>().tile_limits());
    const Tensor left = new_contiguous(x);
    pack_left(x.const_data_ptr<T>(), plan.depth, plan.blocks, left.mutable_data_ptr<T>());
    parallel_for(0, packed.size(0), grain(kSumGrain, plan.rows * plan.depth * kPanel),
                 [&](int64_t begin, int64_t end) {
                   std::vector<T> sums(plan.rows * kPanel);
                   for (int64_t panel = begin; panel < end; ++panel) {
                     multiply_panel(plan, left.const_data_ptr<T>(),
                                    packed.const_data_ptr<T>() + panel * plan.depth * kPanel, sums.data());
                     store_panel(plan, sums.data(), panel, result.mutable_data_ptr<T>());
                   }
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
  library.impl("pack_rows", TORCH_BOX(&vleak::pack_rows));
  library.impl("product", TORCH_BOX(&vleak::product));
}
