// The derivative of a convolution with respect to its weight: a sum of outer products over positions.
//
// Vectors run over (column tap, channel), which are contiguous in the channels-last copy for every stride.
// Rows of a tile are output channels, its depth is a run of positions.
#include <algorithm>
#include <array>
#include <vector>

#include "kernels/blocking.h"
#include "kernels/convolution.h"
#include "kernels/convolution_few.h"
#include "kernels/depthwise.h"
#include "kernels/dispatch.h"
#include "kernels/parallel.h"
#include "kernels/transpose.h"

namespace vleak {
namespace {

// The input as [image, frame, row, column, channel], padded in space. Folded: a channel is a pair of kernel
// row and input channel, so that few input channels fill a vector.
struct Pixels {
  bool folded;
  int64_t tap_rows;  // separate runs of entries for one tap in time
  int64_t channels;
  int64_t rows;
  int64_t row_step;  // from output row to output row
  int64_t columns;
};

// Vectors of weights that one tile holds, all for the same tap in time.
struct WeightGroup {
  int64_t frame_tap;
  int64_t vectors;
  int64_t bases[kMaxTileVectors];
  int64_t at[kMaxTileVectors];  // offsets in the sums of a row
};

struct WeightSchedule {
  ConvolutionShape problem;
  Pixels pixels;
  int64_t lanes;
  int64_t a_line;  // sums for one run of entries, in whole vectors
  int64_t a_row;   // and for one output channel
  std::vector<WeightGroup> groups;
  std::vector<int64_t> row_blocks;
};

// Positions per run: their part of the input stays in the first-level cache for all output channels.
constexpr int64_t kRun = 192;

Pixels plan_pixels(const ConvolutionShape& problem, int64_t lanes) {
  const auto& [input, output, kernel, stride, padding, depthwise] = problem;
  const int64_t columns = (output[4] - 1) * stride[2] + kernel[2], across = kernel[2];
  const Pixels folded{true, 1, kernel[1] * input[1], output[3], 1, columns};
  const Pixels plain{false, kernel[1], input[1], (output[3] - 1) * stride[1] + kernel[1], stride[1], columns};
  const auto vectors = [&](const Pixels& p) { return p.tap_rows * divide_up(across * p.channels, lanes); };
  // Folding multiplies the size of the copy by the rows of the kernel, so it has to save at least a fifth.
  return 5 * vectors(folded) < 4 * vectors(plain) ? folded : plain;
}

int64_t frame_entries(const Pixels& pixels) { return pixels.rows * pixels.columns * pixels.channels; }

// Adds the group of vectors [begin, end) of one tap in time: their offsets among pixels and sums.
void add_group(int64_t frame_tap, int64_t begin, int64_t end, WeightSchedule& schedule) {
  const Pixels& pixels = schedule.pixels;
  const int64_t frame = (frame_tap - schedule.problem.padding[0]) * frame_entries(pixels);
  const int64_t a_line = schedule.a_line;
  WeightGroup group{frame_tap, end - begin, {}, {}};
  for (int64_t v = 0; v < group.vectors; ++v) {
    const int64_t at = (begin + v) * schedule.lanes;
    group.bases[v] = frame + at / a_line * pixels.columns * pixels.channels + at % a_line;
    group.at[v] = frame_tap * pixels.tap_rows * a_line + at;
  }
  schedule.groups.push_back(group);
}

WeightSchedule plan_weight(const ConvolutionShape& problem, const TileLimits& limits) {
  const Pixels pixels = plan_pixels(problem, limits.lanes);
  const int64_t a_line = round_up(problem.kernel[2] * pixels.channels, limits.lanes);
  const int64_t a_tap = pixels.tap_rows * a_line, vectors = a_tap / limits.lanes;
  WeightSchedule plan{problem, pixels, limits.lanes, a_line, problem.kernel[0] * a_tap, {}, {}};
  const int64_t tile_vectors = best_vectors(problem.output[1], vectors, limits),
                blocks = divide_up(vectors, tile_vectors);
  plan.row_blocks = cut_rows(problem.output[1], most_rows(tile_vectors, limits));
  for (int64_t tap = 0; tap < problem.kernel[0]; ++tap) {
    for (int64_t i = 0; i < blocks; ++i) {
      add_group(tap, i * vectors / blocks, (i + 1) * vectors / blocks, plan);
    }
  }
  return plan;
}

int64_t pixels_entries(const WeightSchedule& schedule) {
  const auto& input = schedule.problem.input;
  return input[0] * input[2] * frame_entries(schedule.pixels) + kSlack;
}

// The input rows of one line of pixels, one per channel; `zeros` stands for rows outside the input.
template <typename T>
void line_rows(const WeightSchedule& schedule, const T* frame, int64_t line, const T* zeros,
               std::vector<const T*>& rows) {
  const auto& [input, output, kernel, stride, padding, depthwise] = schedule.problem;
  const int64_t a_channel = channel_size(input);
  rows.clear();
  for (int64_t tap = 0; tap < (schedule.pixels.folded ? kernel[1] : 1); ++tap) {
    const int64_t row = (schedule.pixels.folded ? line * stride[1] + tap : line) - padding[1];
    const bool inside = row >= 0 && row < input[3];
    for (int64_t channel = 0; channel < input[1]; ++channel) {
      rows.push_back(inside ? frame + channel * a_channel + row * input[4] : zeros);
    }
  }
}

template <typename T>
void copy_frame(const WeightSchedule& schedule, const T* frame, T* to) {
  const Pixels& pixels = schedule.pixels;
  const int64_t width = schedule.problem.input[4], padding = schedule.problem.padding[2];
  const auto [begin, end] = inside(-padding, 1, width, pixels.columns);
  const std::vector<T> zeros(width);
  std::vector<const T*> rows;
  for (int64_t line = 0; line < pixels.rows; ++line, to += pixels.columns * pixels.channels) {
    line_rows(schedule, frame, line, zeros.data(), rows);
    std::fill(to, to + begin * pixels.channels, T(0));
    transpose(rows.data(), pixels.channels, end - begin, to + begin * pixels.channels, pixels.channels);
    std::fill(to + end * pixels.channels, to + pixels.columns * pixels.channels, T(0));
  }
}

// begin, end: frames of [pair, image, frame].
template <typename T>
void copy_pixels(const WeightSchedule& schedule, const std::vector<const T*>& xs, int64_t begin, int64_t end,
                 T* pixels) {
  const auto& input = schedule.problem.input;
  const int64_t frames = input[2], a_pair = input[0] * frames, a_frame = input[3] * input[4];
  const int64_t size = frame_entries(schedule.pixels), entries = pixels_entries(schedule);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t inner = at % a_pair;
    const T* frame = xs[at / a_pair] + (inner / frames * input[1] * frames + inner % frames) * a_frame;
    copy_frame(schedule, frame, pixels + at / a_pair * entries + inner * size);
  }
}

// Offsets of the inputs of each position, for tap 0 without padding in time. A run: positions of [image,
// frame, row, column] of the output.
void position_offsets(const WeightSchedule& schedule, Range run, int64_t* offsets) {
  const auto& [input, output, kernel, stride, padding, depthwise] = schedule.problem;
  const Pixels& pixels = schedule.pixels;
  const int64_t width = output[4], height = output[3], frames = output[2];
  const int64_t line = pixels.columns * pixels.channels;
  for (int64_t at = run.begin; at < run.end;) {
    const int64_t column = at % width, row = at / width % height;
    const int64_t frame = at / width / height % frames, image = at / width / height / frames;
    const int64_t start =
        (image * input[2] + frame * stride[0]) * frame_entries(pixels) + row * pixels.row_step * line;
    const int64_t count = std::min(run.end - at, width - column);
    for (int64_t i = 0; i < count; ++i) *offsets++ = start + (column + i) * stride[2] * pixels.channels;
    at += count;
  }
}

// packed[position][row] = dy[image][first + row][position]
template <typename T>
void pack_positions(const ConvolutionShape& problem, const T* dy, int64_t first, int64_t rows, Range run,
                    T* packed) {
  const int64_t a_channel = channel_size(problem.output);
  for (int64_t at = run.begin; at < run.end;) {
    const int64_t image = at / a_channel, inner = at % a_channel;
    const int64_t count = std::min(run.end - at, a_channel - inner);
    const T* from = dy + (image * problem.output[1] + first) * a_channel + inner;
    const T* lines[kMaxTileRows];
    for (int64_t row = 0; row < rows; ++row) {
      lines[row] = from + row * a_channel;
      // The runs are too many and too short for the hardware prefetcher.
      for (int64_t i = 0; i < count; i += 8) __builtin_prefetch(lines[row] + count + i);
    }
    transpose(lines, rows, count, packed, rows);
    packed += count * rows;
    at += count;
  }
}

// Calls act(piece) for the parts of a run that meet an input frame for this tap.
template <typename Do>
void for_valid(const ConvolutionShape& problem, int64_t tap, Range run, Do act) {
  const Range frames =
      inside(tap - problem.padding[0], problem.stride[0], problem.input[2], problem.output[2]);
  if (frames.begin == frames.end) return;
  if (frames.end - frames.begin == problem.output[2]) return act(run);
  const int64_t a_frame = problem.output[3] * problem.output[4], a_clip = problem.output[2] * a_frame;
  for (int64_t image = run.begin / a_clip; image * a_clip < run.end; ++image) {
    const Range piece = {std::max(run.begin, image * a_clip + frames.begin * a_frame),
                         std::min(run.end, image * a_clip + frames.end * a_frame)};
    if (piece.begin < piece.end) act(piece);
  }
}

template <typename T>
void add_run(const WeightSchedule& schedule, const T* pixels, const T* packed, const int64_t* offsets,
             Range run, int64_t begin, int64_t end, T* sums) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t length = run.end - run.begin;
  for (const WeightGroup& group : schedule.groups) {
    for_valid(schedule.problem, group.frame_tap, run, [&](Range piece) {
      const int64_t skipped = piece.begin - run.begin;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = schedule.row_blocks[block], rows = schedule.row_blocks[block + 1] - first;
        const T* left = packed + (first - schedule.row_blocks[begin]) * length + skipped * rows;
        kernels.tile(rows, group.vectors)(left, pixels, offsets + skipped, piece.end - piece.begin,
                                          group.bases, nullptr, sums + first * schedule.a_row, schedule.a_row,
                                          group.at);
      }
    });
  }
}

// For each tap of the kernel, the offset of its sums, which are those of the input channels side by side.
std::vector<int64_t> find_taps(const WeightSchedule& schedule) {
  const auto& kernel = schedule.problem.kernel;
  const Pixels& pixels = schedule.pixels;
  std::vector<int64_t> taps;
  for (int64_t tap = 0; tap < kernel[0] * kernel[1]; ++tap) {
    const int64_t frame = tap / kernel[1], down = tap % kernel[1];
    const int64_t line = frame * pixels.tap_rows + (pixels.folded ? 0 : down);
    const int64_t inner = pixels.folded ? down * schedule.problem.input[1] : 0;
    for (int64_t across = 0; across < kernel[2]; ++across) {
      taps.push_back(line * schedule.a_line + across * pixels.channels + inner);
    }
  }
  return taps;
}

// result[row][channel][tap] = sums, plus start, for the rows [first, last)
template <typename T>
void copy_sums(const WeightSchedule& schedule, int64_t first, int64_t last, const T* sums, const T* start,
               T* result) {
  const std::vector<int64_t> offsets = find_taps(schedule);
  const int64_t taps = offsets.size(), channels = schedule.problem.input[1], weights = channels * taps;
  std::vector<const T*> lines(taps);
  for (int64_t row = first; row < last; ++row) {
    for (int64_t tap = 0; tap < taps; ++tap) lines[tap] = sums + row * schedule.a_row + offsets[tap];
    T* to = result + row * weights;
    transpose(lines.data(), taps, channels, to, taps);
    for (int64_t i = 0; start && i < weights; ++i) to[i] += start[row * weights + i];
  }
}

template <typename T>
void run_weight(const WeightSchedule& schedule, const T* pixels, const std::vector<const T*>& dys,
                int64_t begin, int64_t end, T* sums) {
  const auto& output = schedule.problem.output;
  const int64_t positions = output[0] * channel_size(output), entries = pixels_entries(schedule);
  const int64_t first = schedule.row_blocks[begin], last = schedule.row_blocks[end];
  std::fill(sums + first * schedule.a_row, sums + last * schedule.a_row, T(0));
  std::vector<T> packed(kRun * (last - first));
  int64_t offsets[kRun];
  for (int64_t at = 0; at < positions; at += kRun) {
    const Range run = {at, std::min(positions, at + kRun)};
    position_offsets(schedule, run, offsets);
    for (size_t pair = 0; pair < dys.size(); ++pair) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t row = schedule.row_blocks[block];
        pack_positions(schedule.problem, dys[pair], row, schedule.row_blocks[block + 1] - row, run,
                       packed.data() + (row - first) * (run.end - run.begin));
      }
      add_run(schedule, pixels + pair * entries, packed.data(), offsets, run, begin, end, sums);
    }
  }
}

}  // namespace

template <typename T>
void conv_weight(const std::vector<const T*>& xs, const std::vector<const T*>& dys, const T* start,
                 const ConvolutionShape& shape, T* result) {
  if (shape.depthwise) return depthwise_weight(xs, dys, start, shape, result);
  if (few_outputs(shape)) return few_weight(xs, dys, start, shape, result);
  const WeightSchedule schedule = plan_weight(shape, cpu_kernels<T>().tile_limits());
  const int64_t entries = pixels_entries(schedule), frames = shape.input[0] * shape.input[2];
  const int64_t pairs = xs.size();
  const auto pixels = scratch<T>(pairs * entries), sums = scratch<T>(shape.output[1] * schedule.a_row);
  parallel_for(pairs * frames, grain_of(kCopyGrain, entries / std::max<int64_t>(1, frames)),
               [&](int64_t begin, int64_t end) { copy_pixels(schedule, xs, begin, end, pixels.get()); });
  const int64_t blocks = static_cast<int64_t>(schedule.row_blocks.size()) - 1;
  const int64_t dy_entries = shape.output[0] * shape.output[1] * channel_size(shape.output);
  parallel_for(blocks, grain_of(kSumGrain, pairs * dy_entries * schedule.a_row / blocks),
               [&](int64_t begin, int64_t end) {
                 run_weight(schedule, pixels.get(), dys, begin, end, sums.get());
                 copy_sums(schedule, schedule.row_blocks[begin], schedule.row_blocks[end], sums.get(), start,
                           result);
               });
}

template void conv_weight<float>(const std::vector<const float*>&, const std::vector<const float*>&,
                                 const float*, const ConvolutionShape&, float*);
template void conv_weight<double>(const std::vector<const double*>&, const std::vector<const double*>&,
                                  const double*, const ConvolutionShape&, double*);

}  // namespace vleak
