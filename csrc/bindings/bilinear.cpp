// CPU implementations of the operators that vleak/bilinear.py declares.
#include <algorithm>
#include <array>
#include <memory>

#include "bindings/arguments.h"
#include "kernels/conv.h"
#include "kernels/dispatch.h"
#include "kernels/transpose.h"

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

// Scratch space, uninitialized: a tensor would cost a call of the dispatcher.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t entries) {
  return std::unique_ptr<T[]>(new T[entries]);
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

// ---------------------------------------------------------------------------------------------------------
// These hold for every call through vleak.bilinear; a direct call of the operator must fail too, not crash.

void check(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "vleak: ", what, "; call the function in vleak.bilinear, which says why");
}

void check_alike(const Tensor& tensor, const Tensor& like) {
  check(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(),
        "tensors differ in kind");
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

// ---------------------------------------------------------------------------------------------------------
// product

// A matrix whose rows are contiguous each.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// What of both operands is worked on at once shall stay in the second cache.
constexpr int64_t kCacheBytes = 1 << 18;
constexpr int64_t kLeastDepth = 128;

// How left [rows, depth] times right [depth, vectors of columns] is cut. One operand may be large: it is read
// once, piece by piece, for the parts of the other, which stay in the cache.
struct ProductPlan {
  int64_t lanes, vectors, held, depth, piece;
  bool left_is_large;
  std::vector<int64_t> blocks;

  int64_t row_blocks() const { return static_cast<int64_t>(blocks.size()) - 1; }
  int64_t panels() const { return divide_up(vectors, held); }
  int64_t larges() const { return left_is_large ? row_blocks() : panels(); }
  int64_t smalls() const { return left_is_large ? panels() : row_blocks(); }
};

ProductPlan plan_product(int64_t rows, int64_t depth, int64_t vectors, bool left_is_large,
                         const TileLimits& limits) {
  const int64_t held = std::min(best_vectors(rows, vectors, limits), kMaxBlockVectors);
  const int64_t block = most_rows(held, limits), width = held * limits.lanes;
  const int64_t entries = left_is_large ? vectors * limits.lanes + 2 * block : rows + 2 * width;
  const int64_t most = std::max(kLeastDepth, kCacheBytes / limits.entry_bytes / entries);
  const int64_t even = divide_up(depth, divide_up(depth, most));
  return {limits.lanes, vectors, held, depth, divide_up(even, 16) * 16, left_is_large, cut_rows(rows, block)};
}

// A share of the large operand's next part, for the entries [start, start + count) of the depth.
template <typename T>
Ahead<T> ahead(const ProductPlan& plan, Rows<const T> large, int64_t next, int64_t start, int64_t count,
               int64_t share, int64_t shares) {
  if (plan.left_is_large) {
    const int64_t first = plan.blocks[next], rows = plan.blocks[next + 1] - first;
    const int64_t from = share * rows / shares, to = (share + 1) * rows / shares;
    return {large.data + (first + from) * large.stride + start, large.stride, to - from, count};
  }
  const int64_t from = share * count / shares, to = (share + 1) * count / shares;
  const int64_t vectors = std::min(plan.held, plan.vectors - next * plan.held);
  return {large.data + (start + from) * large.stride + next * plan.held * plan.lanes, large.stride, to - from,
          vectors * plan.lanes};
}

// sums += left right, for the parts [begin, end) of the large operand
template <typename T>
void multiply(const ProductPlan& plan, Rows<const T> left, Rows<const T> right, int64_t begin, int64_t end,
              bool fresh, Rows<T> sums) {
  const int64_t smalls = plan.smalls();
  for (int64_t start = 0; start < plan.depth; start += plan.piece, fresh = false) {
    const int64_t count = std::min(plan.piece, plan.depth - start);
    for (int64_t i = begin * smalls; i < end * smalls; ++i) {
      const int64_t large = i / smalls, small = i % smalls;
      const int64_t block = plan.left_is_large ? large : small, panel = plan.left_is_large ? small : large;
      const int64_t row = plan.blocks[block], column = panel * plan.held * plan.lanes;
      Ahead<T> next{};
      if (large + 1 < end)
        next = ahead(plan, plan.left_is_large ? left : right, large + 1, start, count, small, smalls);
      const auto run = cpu_kernels<T>().block_product(plan.blocks[block + 1] - row,
                                                      std::min(plan.held, plan.vectors - panel * plan.held));
      run({left.data + row * left.stride + start, left.stride, right.data + start * right.stride + column,
           right.stride, count, sums.data + row * sums.stride + column, sums.stride, fresh, next});
    }
  }
}

template <typename T>
void multiply_all(const ProductPlan& plan, Rows<const T> left, Rows<const T> right, bool fresh,
                  Rows<T> sums) {
  const int64_t work = plan.blocks.back() * plan.depth * plan.vectors * plan.lanes;
  const int64_t larges = plan.larges();
  parallel_for(0, larges, grain(kSumGrain, work / std::max<int64_t>(1, larges)),
               [&](int64_t begin, int64_t end) { multiply<T>(plan, left, right, begin, end, fresh, sums); });
}

// to[i * to_stride + j] = from[j, i] for j < rows, i < length
//
// steps: entries of a row that are taken at once. Few where to_stride is large, and often a power of two:
// lines of the cache are then written in full before they push out each other.
template <typename T>
void transpose_all(Rows<const T> from, int64_t rows, int64_t length, int64_t steps, T* to,
                   int64_t to_stride) {
  constexpr int64_t kTogether = 16;
  parallel_for(
      0, divide_up(rows, kTogether), grain(kCopyGrain, kTogether * length), [&](int64_t begin, int64_t end) {
        const T* lines[kTogether];
        for (int64_t row = begin * kTogether; row < std::min(rows, end * kTogether); row += kTogether) {
          const int64_t count = std::min(kTogether, rows - row);
          for (int64_t at = 0; at < length; at += steps) {
            for (int64_t i = 0; i < count; ++i) lines[i] = from.data + (row + i) * from.stride + at;
            transpose(lines, count, std::min(steps, length - at), to + at * to_stride + row, to_stride);
          }
        }
      });
}

// One of the pairs that are multiplied and added up: rows x, and m as it lies or its transpose.
template <typename T>
struct Factors {
  Rows<const T> x, m;
  int64_t depth;
};

// y += x m, where the rows of m are read as vectors.
template <typename T>
void add_product(const Factors<T>& pair, int64_t rows, int64_t columns, bool fresh, T* y) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t vectors = columns / limits.lanes, whole = vectors * limits.lanes, rest = columns - whole;
  if (vectors > 0) {
    const ProductPlan plan = plan_product(rows, pair.depth, vectors, false, limits);
    multiply_all<T>(plan, pair.x, pair.m, fresh, {y, columns});
  }
  if (rest == 0) return;
  // The last columns are no whole vector: both they and their sums are copied to where they are one.
  const auto last = scratch<T>(pair.depth * limits.lanes), sums = scratch<T>(rows * limits.lanes);
  std::fill_n(last.get(), pair.depth * limits.lanes, T(0));
  std::fill_n(sums.get(), rows * limits.lanes, T(0));
  for (int64_t k = 0; k < pair.depth; ++k)
    std::copy_n(pair.m.data + k * pair.m.stride + whole, rest, last.get() + k * limits.lanes);
  for (int64_t row = 0; row < rows && !fresh; ++row)
    std::copy_n(y + row * columns + whole, rest, sums.get() + row * limits.lanes);
  const ProductPlan plan = plan_product(rows, pair.depth, 1, true, limits);
  multiply_all<T>(plan, pair.x, {last.get(), limits.lanes}, false, {sums.get(), limits.lanes});
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(sums.get() + row * limits.lanes, rest, y + row * columns + whole);
}

// y = sum over pairs of x m^T, as (m x^T)^T: the rows of m are read entry by entry, which packs nothing.
template <typename T>
void transposed_products(const std::vector<Factors<T>>& pairs, int64_t rows, int64_t columns, T* y) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t vectors = divide_up(rows, limits.lanes), padded = vectors * limits.lanes;
  const auto sums = scratch<T>(columns * padded);
  bool fresh = true;
  for (const Factors<T>& pair : pairs) {
    const int64_t piece = plan_product(columns, pair.depth, vectors, true, limits).piece;
    const auto turned = scratch<T>(piece * padded);
    if (padded > rows) std::fill_n(turned.get(), piece * padded, T(0));
    for (int64_t start = 0; start < pair.depth; start += piece, fresh = false) {
      const int64_t count = std::min(piece, pair.depth - start);
      transpose_all<T>({pair.x.data + start, pair.x.stride}, rows, count, 16, turned.get(), padded);
      const ProductPlan plan = plan_product(columns, count, vectors, true, limits);
      multiply_all<T>(plan, {pair.m.data + start, pair.m.stride}, {turned.get(), padded}, fresh,
                      {sums.get(), padded});
    }
  }
  transpose_all<T>({sums.get(), padded}, columns, rows, 4, y, columns);
}

bool has_dense_rows(const Tensor& matrix) { return matrix.stride(1) == 1 || matrix.size(1) == 1; }
bool has_dense_columns(const Tensor& matrix) { return matrix.stride(0) == 1 || matrix.size(0) == 1; }

void check_products(const std::vector<Tensor>& xs, const std::vector<Tensor>& ms) {
  check(!xs.empty() && xs.size() == ms.size(), "lists differ in length");
  for (size_t i = 0; i < xs.size(); ++i) {
    check_alike(xs[i], xs[0]);
    check_alike(ms[i], xs[0]);
    check(xs[i].dim() == 2 && ms[i].dim() == 2 && xs[i].size(1) == ms[i].size(0) &&
              xs[i].size(0) == xs[0].size(0) && ms[i].size(1) == ms[0].size(1),
          "pairs do not match");
  }
}

Tensor product(std::vector<Tensor> xs, std::vector<Tensor> ms) {
  check_products(xs, ms);
  const int64_t rows = xs[0].size(0), columns = ms[0].size(1);
  const Tensor result = new_contiguous(xs[0], {rows, columns});
  if (result.numel() == 0) return result;
  with_type(xs[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<Factors<T>> plain, turned;
    for (size_t i = 0; i < xs.size(); ++i) {
      Tensor &x = xs[i], &m = ms[i];
      if (x.size(1) == 0) continue;
      if (!has_dense_rows(x)) x = dense(x);
      const bool transposed = !has_dense_rows(m) && has_dense_columns(m);
      if (!transposed && !has_dense_rows(m)) m = dense(m);
      (transposed ? turned : plain)
          .push_back({{x.const_data_ptr<T>(), x.stride(0)},
                      {m.const_data_ptr<T>(), m.stride(transposed ? 1 : 0)},
                      x.size(1)});
    }
    T* y = result.mutable_data_ptr<T>();
    if (!turned.empty()) transposed_products(turned, rows, columns, y);
    bool fresh = turned.empty();
    if (fresh && plain.empty()) std::fill_n(y, rows * columns, T(0));
    for (const Factors<T>& pair : plain) {
      add_product(pair, rows, columns, fresh, y);
      fresh = false;
    }
  });
  return result;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("conv_output", TORCH_BOX(&vleak::conv_output));
  library.impl("conv_input", TORCH_BOX(&vleak::conv_input));
  library.impl("conv_weight", TORCH_BOX(&vleak::conv_weight));
  library.impl("product", TORCH_BOX(&vleak::product));
}
