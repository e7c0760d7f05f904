// Convolutions with 3x3 kernels in space and stride 1, by Winograd's minimal filtering F(2x2, 3x3) (Lavin and
// Gray, CVPR 2016, arXiv 1509.09308): tiles of 2x2 outputs cost 16 products a tap in time where the plain sum
// takes 36. Frames are summed over plainly.
#pragma once

#include <algorithm>

#include "kernels/blocking.h"
#include "kernels/convolution.h"
#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {
namespace {

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

constexpr int64_t kPoints = 16;  // values that stand for a tile
// What a block of transformed inputs and outputs may take: the second-level cache, about.
constexpr int64_t kBlockBytes = 512 << 10;

// Blocks of tile rows, all frames and channels at once.
struct Plan {
  int64_t channels;   // of all pairs
  int64_t tile_rows;  // of the output
  int64_t tile_columns;
  int64_t block_rows;  // of tiles
  int64_t tiles;       // of a block, in whole vectors
  int64_t frames;      // of the input, padded
  int64_t vectors;     // of a register block
  std::vector<int64_t> row_blocks;
};

template <typename T>
Plan make_plan(const WinogradShape& shape, int64_t pairs) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  Plan plan{shape.channels * pairs,
            divide_up(shape.output[1], 2),
            divide_up(shape.output[2], 2),
            1,
            0,
            shape.output[0] + shape.taps - 1,
            1,
            {}};
  const int64_t per_tile = kPoints * (plan.channels * plan.frames + shape.rows * shape.output[0]) * sizeof(T);
  const auto tiles = [&](int64_t rows) { return round_up(rows * plan.tile_columns, limits.lanes); };
  while (plan.block_rows < plan.tile_rows && (tiles(plan.block_rows) < 2 * limits.lanes ||
                                              tiles(plan.block_rows + 1) * per_tile <= kBlockBytes)) {
    ++plan.block_rows;
  }
  // Equal blocks.
  plan.block_rows = divide_up(plan.tile_rows, divide_up(plan.tile_rows, plan.block_rows));
  plan.tiles = tiles(plan.block_rows);
  plan.vectors = best_vectors(shape.rows, plan.tiles / limits.lanes, limits);
  plan.row_blocks = cut_rows(shape.rows, most_rows(plan.vectors, limits));
  return plan;
}

// Rows of weights that are transformed together, in the lanes of vectors.
constexpr int64_t kTogether = 8;

template <typename T>
struct Lanes {
  T of[kTogether];
};

// (a, b, c) to G (a, b, c)
template <typename T>
VLEAK_INLINE void transform(const Lanes<T>& a, const Lanes<T>& b, const Lanes<T>& c, Lanes<T>* to,
                            int64_t step) {
  for (int64_t i = 0; i < kTogether; ++i) {
    const T ends = a.of[i] + c.of[i];
    to[0].of[i] = a.of[i];
    to[step].of[i] = T(0.5) * (ends + b.of[i]);
    to[2 * step].of[i] = T(0.5) * (ends - b.of[i]);
    to[3 * step].of[i] = c.of[i];
  }
}

// to[point] = G g G' of 3x3 kernels
template <typename T>
VLEAK_INLINE void transform_kernels(const Lanes<T>* g /* [9] */, Lanes<T>* to /* [16] */) {
  Lanes<T> columns[12];
  for (int64_t j = 0; j < 3; ++j) transform(g[j], g[3 + j], g[6 + j], columns + j, 3);
  for (int64_t i = 0; i < 4; ++i) {
    transform(columns[3 * i], columns[3 * i + 1], columns[3 * i + 2], to + 4 * i, 1);
  }
}

// Transforms the weights of one block of rows: to[point][tap, channel][row].
template <typename T>
void transform_weights(const WinogradShape& shape, const Plan& plan, const WeightView<T>& weight,
                       int64_t first_channel, int64_t first, int64_t rows, T* to) {
  const int64_t depth = shape.taps * plan.channels, a_point = shape.rows * depth;
  Lanes<T> g[9] = {}, points[kPoints];
  for (int64_t begin = 0; begin < rows; begin += kTogether) {
    const int64_t count = std::min(kTogether, rows - begin);
    const T* from = weight.data + (first + begin) * weight.row_stride;
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      for (int64_t tap = 0; tap < shape.taps; ++tap) {
        const int64_t plane = 9 * (shape.flipped ? shape.taps - 1 - tap : tap);
        for (int64_t row = 0; row < count; ++row) {
          const T* kernel = from + row * weight.row_stride + channel * weight.channel_stride + plane;
          for (int64_t i = 0; i < 9; ++i) g[i].of[row] = kernel[shape.flipped ? 8 - i : i];
        }
        transform_kernels(g, points);
        T* at = to + first * depth + (tap * plan.channels + first_channel + channel) * rows + begin;
        for (int64_t i = 0; i < kPoints; ++i) std::copy_n(points[i].of, count, at + i * a_point);
      }
    }
  }
}

// Scratch memory of one thread.
template <typename T>
struct Scratch {
  std::vector<T> line, even, odd, inputs, outputs, upper, lower;
};

// Transforms one channel of one frame for a block: to[point][tile].
template <typename T>
void transform_frame(const WinogradShape& shape, const Plan& plan, const T* frame, int64_t row_stride,
                     int64_t column_stride, int64_t first, int64_t tile_rows, Scratch<T>& scratch,
                     int64_t step, T* to) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t pitch = plan.tile_columns + 1, before = shape.padding[2];
  const int64_t width = std::min(shape.input[2], 2 * pitch - before);
  for (int64_t i = 0; i < 2 * tile_rows + 2; ++i) {
    const int64_t row = 2 * first + i - shape.padding[1];
    T *even = scratch.even.data() + i * pitch, *odd = scratch.odd.data() + i * pitch;
    if (row < 0 || row >= shape.input[1]) {
      std::fill_n(even, pitch, T(0));
      std::fill_n(odd, pitch, T(0));
      continue;
    }
    const T* from = frame + row * row_stride;
    T* line = scratch.line.data() + before;  // zeros around it
    if (column_stride == 1)
      std::copy_n(from, width, line);
    else
      for (int64_t j = 0; j < width; ++j) line[j] = from[j * column_stride];
    kernels.split_line(scratch.line.data(), pitch, even, odd);
  }
  for (int64_t i = 0; i < tile_rows; ++i) {
    const T *even[4], *odd[4];
    for (int64_t row = 0; row < 4; ++row) {
      even[row] = scratch.even.data() + (2 * i + row) * pitch;
      odd[row] = scratch.odd.data() + (2 * i + row) * pitch;
    }
    kernels.winograd_input(even, odd, plan.tile_columns, to + i * plan.tile_columns, step);
  }
}

// Multiplies inputs [point][frame, channel][tile] by the weights: to [point][row][frame][tile].
template <typename T>
void multiply(const WinogradShape& shape, const Plan& plan, const T* weights, const T* inputs, T* to) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t lanes = kernels.tile_limits().lanes, depth = shape.taps * plan.channels;
  const int64_t a_frame = plan.channels * plan.tiles, a_row = shape.output[0] * plan.tiles;
  std::vector<int64_t> offsets(depth);
  for (int64_t k = 0; k < depth; ++k) offsets[k] = k * plan.tiles;
  const std::vector<T> zeros(shape.rows, T(0));
  int64_t bases[kMaxTileVectors], at[kMaxTileVectors];
  for (int64_t point = 0; point < kPoints; ++point) {
    const T* right = inputs + point * plan.frames * a_frame;
    const T* left = weights + point * shape.rows * depth;
    T* sums = to + point * shape.rows * a_row;
    for (int64_t frame = 0; frame < shape.output[0]; ++frame) {
      // Taps outside the input in time read zeros, so they are left out.
      const auto [begin, end] = inside(frame - shape.padding[0], 1, shape.input[0], shape.taps);
      const int64_t skipped = begin * plan.channels, count = (end - begin) * plan.channels;
      for (int64_t first = 0; first < plan.tiles; first += plan.vectors * lanes) {
        const int64_t vectors = std::min(plan.vectors, (plan.tiles - first) / lanes);
        for (int64_t v = 0; v < vectors; ++v) {
          bases[v] = frame * a_frame + first + v * lanes;
          at[v] = frame * plan.tiles + first + v * lanes;
        }
        for (size_t block = 0; block + 1 < plan.row_blocks.size(); ++block) {
          const int64_t row = plan.row_blocks[block], rows = plan.row_blocks[block + 1] - row;
          kernels.tile(rows, vectors)(left + row * depth + skipped * rows, right, offsets.data() + skipped,
                                      count, bases, zeros.data(), sums + row * a_row, a_row, at);
        }
      }
    }
  }
}

template <typename T>
void transform_outputs(const WinogradShape& shape, const Plan& plan, const T* bias, int64_t first,
                       int64_t tile_rows, Scratch<T>& scratch, T* image) {
  const auto& [frames, height, width] = shape.output;
  const int64_t step = shape.rows * frames * plan.tiles;
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t frame = 0; frame < frames; ++frame) {
      const T* from = scratch.outputs.data() + (row * frames + frame) * plan.tiles;
      for (int64_t i = 0; i < tile_rows; ++i) {
        cpu_kernels<T>().winograd_output(from + i * plan.tile_columns, step, plan.tile_columns,
                                         bias ? bias[row] : T(0), scratch.upper.data(), scratch.lower.data());
        const int64_t at = 2 * (first + i);
        T* to = image + ((row * frames + frame) * height + at) * width;
        std::copy_n(scratch.upper.data(), width, to);
        if (at + 1 < height) std::copy_n(scratch.lower.data(), width, to + width);
      }
    }
  }
}

// Whether it pays: tiles must fill vectors, and serve for the transformed weights often enough.
template <typename T>
bool winograd_pays(const WinogradShape& shape, const std::array<int64_t, 3>& kernel,
                   const std::array<int64_t, 3>& stride) {
  const int64_t tiles = divide_up(shape.output[1], 2) * divide_up(shape.output[2], 2);
  const bool fits = kernel[1] == 3 && kernel[2] == 3 && stride == std::array<int64_t, 3>{1, 1, 1} &&
                    *std::min_element(shape.padding.begin(), shape.padding.end()) >= 0;
  return fits && tiles >= 2 * cpu_kernels<T>().tile_limits().lanes && shape.channels >= 8 &&
         shape.rows >= 8 && shape.images * shape.output[0] * tiles >= 192;
}

// output: [image][row][frame][row][column], contiguous; bias: [row] or null.
template <typename T>
void winograd(const WinogradShape& shape, const std::vector<View<const T>>& inputs,
              const std::vector<WeightView<T>>& weights, const T* bias, T* output) {
  const Plan plan = make_plan<T>(shape, inputs.size());
  const int64_t depth = shape.taps * plan.channels;
  const auto transformed = scratch<T>(kPoints * shape.rows * depth);
  const int64_t row_blocks = static_cast<int64_t>(plan.row_blocks.size()) - 1;
  parallel_for(row_blocks, grain_of(kCopyGrain, kPoints * shape.rows * depth / row_blocks),
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   const int64_t first = plan.row_blocks[block], rows = plan.row_blocks[block + 1] - first;
                   for (size_t pair = 0; pair < weights.size(); ++pair) {
                     transform_weights<T>(shape, plan, weights[pair], pair * shape.channels, first, rows,
                                          transformed.get());
                   }
                 }
               });
  const int64_t blocks = divide_up(plan.tile_rows, plan.block_rows);
  const int64_t a_point = plan.frames * plan.channels * plan.tiles;
  const int64_t an_image = shape.rows * shape.output[0] * shape.output[1] * shape.output[2];
  parallel_for(shape.images * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t pitch = plan.tile_columns + 1, lines = 2 * plan.block_rows + 2;
    Scratch<T> own{std::vector<T>(2 * pitch + shape.padding[2] + shape.input[2]),
                   std::vector<T>(lines * pitch),
                   std::vector<T>(lines * pitch),
                   std::vector<T>(kPoints * a_point),
                   std::vector<T>(kPoints * shape.rows * shape.output[0] * plan.tiles),
                   std::vector<T>(2 * pitch),
                   std::vector<T>(2 * pitch)};
    for (int64_t at = begin; at < end; ++at) {
      const int64_t image = at / blocks, first = at % blocks * plan.block_rows;
      const int64_t tile_rows = std::min(plan.block_rows, plan.tile_rows - first);
      for (int64_t channel = 0; channel < plan.channels; ++channel) {
        const View<const T>& input = inputs[channel / shape.channels];
        const T* from = input.data + image * input.strides[0] + channel % shape.channels * input.strides[1];
        for (int64_t frame = 0; frame < shape.input[0]; ++frame) {
          const int64_t to = frame + shape.padding[0];
          if (to >= plan.frames) break;
          transform_frame(shape, plan, from + frame * input.strides[2], input.strides[3], input.strides[4],
                          first, tile_rows, own, a_point,
                          own.inputs.data() + (to * plan.channels + channel) * plan.tiles);
        }
      }
      multiply(shape, plan, transformed.get(), own.inputs.data(), own.outputs.data());
      transform_outputs(shape, plan, bias, first, tile_rows, own, output + image * an_image);
    }
  });
}

}  // namespace
}  // namespace vleak
