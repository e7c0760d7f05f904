// The derivative of a convolution with respect to its weight: a sum of outer products over positions.
//
// Vectors run over (column tap, channel), which lie side by side in the channels-last copy for every stride;
// rows of a tile are output channels, its depth is a run of positions.
#include <algorithm>

#include "kernels/conv.h"
#include "kernels/dispatch.h"

namespace vleak {
namespace {

// Positions that are taken at once: their part of the input stays in the first cache for all output channels.
constexpr int64_t kRun = 192;

int64_t vectors_a_tap(const WeightProblem& problem, bool folded, int64_t lanes) {
  const int64_t run = problem.kernel[2] * problem.input[1];
  if (folded) return divide_up(run * problem.kernel[1], lanes);
  return problem.kernel[1] * divide_up(run, lanes);
}

Pixels plan_pixels(const WeightProblem& problem, int64_t lanes) {
  const auto& [kernel, stride, padding, input, output] = problem;
  // Folding makes the copy as many times longer as the kernel has rows, so it has to save a fifth at least.
  const bool folded = 5 * vectors_a_tap(problem, true, lanes) < 4 * vectors_a_tap(problem, false, lanes);
  const int64_t columns = (output[4] - 1) * stride[2] + kernel[2];
  if (folded) return {true, kernel[1] * input[1], output[3], 1, columns};
  return {false, input[1], (output[3] - 1) * stride[1] + kernel[1], stride[1], columns};
}

int64_t frame_entries(const Pixels& pixels) { return pixels.rows * pixels.columns * pixels.channels; }

// Entries that lie side by side for one tap in time and, unless folded, one tap down.
int64_t run_entries(const WeightSchedule& schedule) {
  return schedule.problem.kernel[2] * schedule.pixels.channels;
}

// All vectors of one tap in time, by where they start.
std::vector<int64_t> tap_bases(const WeightSchedule& schedule, int64_t frame_tap) {
  const Pixels& pixels = schedule.pixels;
  const int64_t frame = (frame_tap - schedule.problem.padding[0]) * frame_entries(pixels);
  std::vector<int64_t> bases;
  for (int64_t down = 0; down < (pixels.folded ? 1 : schedule.problem.kernel[1]); ++down) {
    for (int64_t at = 0; at < run_entries(schedule); at += schedule.lanes) {
      bases.push_back(frame + down * pixels.columns * pixels.channels + at);
    }
  }
  return bases;
}

}  // namespace

WeightSchedule plan_weight(const WeightProblem& problem, const TileLimits& limits) {
  WeightSchedule plan{problem, plan_pixels(problem, limits.lanes), limits.lanes, {}, {}, 0};
  const int64_t rows = problem.output[1];
  for (int64_t tap = 0; tap < problem.kernel[0]; ++tap) {
    const std::vector<int64_t> bases = tap_bases(plan, tap);
    const int64_t held = best_vectors(rows, bases.size(), limits);
    plan.row_blocks = cut_rows(rows, most_rows(held, limits));
    const std::vector<int64_t> cuts = cut_rows(bases.size(), held);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      WeightGroup group{tap, cuts[i + 1] - cuts[i], {}, plan.sums};
      std::copy(bases.begin() + cuts[i], bases.begin() + cuts[i + 1], group.bases);
      plan.groups.push_back(group);
      plan.sums += rows * group.vectors * limits.lanes;
    }
  }
  return plan;
}

int64_t pixels_entries(const WeightSchedule& schedule) {
  const auto& input = schedule.problem.input;
  return input[0] * input[2] * frame_entries(schedule.pixels) +
         kMaxTileBytes / static_cast<int64_t>(sizeof(float));
}

namespace {

// line[column * channels] = row[column - padding] inside, 0 outside
template <typename T>
void copy_channel(const T* row, int64_t size, int64_t step, int64_t padding, int64_t columns,
                  int64_t channels, T* line) {
  const int64_t begin = std::min(padding, columns), end = std::clamp(size + padding, begin, columns);
  for (int64_t i = 0; i < begin; ++i) line[i * channels] = T(0);
  for (int64_t i = begin; i < end; ++i) line[i * channels] = row[(i - padding) * step];
  for (int64_t i = end; i < columns; ++i) line[i * channels] = T(0);
}

template <typename T>
void copy_frame(const WeightSchedule& schedule, const View<const T>& input, const T* frame, T* to) {
  const Pixels& pixels = schedule.pixels;
  const WeightProblem& problem = schedule.problem;
  for (int64_t line = 0; line < pixels.rows; ++line, to += pixels.columns * pixels.channels) {
    for (int64_t channel = 0; channel < pixels.channels; ++channel) {
      const int64_t tap = channel / input.sizes[1];  // 0 unless folded
      const int64_t row = (pixels.folded ? line * problem.stride[1] + tap : line) - problem.padding[1];
      const bool inside = row >= 0 && row < input.sizes[3];
      const T* from =
          frame + channel % input.sizes[1] * input.strides[1] + (inside ? row * input.strides[3] : 0);
      copy_channel(from, inside ? input.sizes[4] : 0, input.strides[4], problem.padding[2], pixels.columns,
                   pixels.channels, to + channel);
    }
  }
}

}  // namespace

template <typename T>
void copy_pixels(const WeightSchedule& schedule, const View<const T>& input, int64_t begin, int64_t end,
                 T* pixels) {
  const int64_t frames = input.sizes[2], size = frame_entries(schedule.pixels);
  for (int64_t at = begin; at < end; ++at) {
    const T* frame = input.data + at / frames * input.strides[0] + at % frames * input.strides[2];
    copy_frame(schedule, input, frame, pixels + at * size);
  }
}

namespace {

// Positions [begin, end) of [image, frame, row, column] of the output.
struct Run {
  int64_t begin;
  int64_t end;
};

// Where the inputs of each position lie, for tap 0 without its padding in time.
void position_offsets(const WeightSchedule& schedule, Run run, int64_t* offsets) {
  const auto& [kernel, stride, padding, input, output] = schedule.problem;
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
void pack_positions(const WeightProblem& problem, const T* dy, int64_t first, int64_t rows, Run run,
                    T* packed) {
  const int64_t a_channel = problem.output[2] * problem.output[3] * problem.output[4];
  for (int64_t at = run.begin; at < run.end;) {
    const int64_t image = at / a_channel, inner = at % a_channel;
    const int64_t count = std::min(run.end - at, a_channel - inner);
    const T* from = dy + (image * problem.output[1] + first) * a_channel + inner;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < count; ++i) packed[i * rows + row] = from[row * a_channel + i];
    }
    packed += count * rows;
    at += count;
  }
}

// Frames of the output that find an input for this tap, [begin, end).
Run valid_frames(const WeightProblem& problem, int64_t tap) {
  const int64_t shift = tap - problem.padding[0], stride = problem.stride[0], frames = problem.output[2];
  const int64_t begin = std::clamp<int64_t>(divide_up(std::max<int64_t>(0, -shift), stride), 0, frames);
  const int64_t end =
      std::clamp<int64_t>(divide_up(std::max<int64_t>(0, problem.input[2] - shift), stride), begin, frames);
  return {begin, end};
}

// Calls run(piece) for the parts of a run that find an input for this tap.
template <typename Do>
void for_valid(const WeightProblem& problem, int64_t tap, Run run, Do act) {
  const Run frames = valid_frames(problem, tap);
  if (frames.begin == frames.end) return;
  if (frames.end - frames.begin == problem.output[2]) return act(run);
  const int64_t a_frame = problem.output[3] * problem.output[4], a_clip = problem.output[2] * a_frame;
  for (int64_t image = run.begin / a_clip; image * a_clip < run.end; ++image) {
    const Run piece = {std::max(run.begin, image * a_clip + frames.begin * a_frame),
                       std::min(run.end, image * a_clip + frames.end * a_frame)};
    if (piece.begin < piece.end) act(piece);
  }
}

template <typename T>
void add_run(const WeightSchedule& schedule, const T* pixels, const T* packed, const int64_t* offsets,
             Run run, int64_t begin, int64_t end, T* sums) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t length = run.end - run.begin;
  for (const WeightGroup& group : schedule.groups) {
    for_valid(schedule.problem, group.frame_tap, run, [&](Run piece) {
      const int64_t skipped = piece.begin - run.begin;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = schedule.row_blocks[block], rows = schedule.row_blocks[block + 1] - first;
        const T* left = packed + (first - schedule.row_blocks[begin]) * length + skipped * rows;
        kernels.tile(rows, group.vectors)(left, pixels, offsets + skipped, piece.end - piece.begin,
                                          group.bases,
                                          sums + group.sums + first * group.vectors * schedule.lanes);
      }
    });
  }
}

// Where each weight of one output channel lies among the sums of output channel 0, and how far to the next.
struct Sources {
  std::vector<int64_t> at;
  std::vector<int64_t> step;
};

Sources find_sources(const WeightSchedule& schedule) {
  const auto& kernel = schedule.problem.kernel;
  const Pixels& pixels = schedule.pixels;
  const int64_t channels = schedule.problem.input[1], taps = kernel[0] * kernel[1] * kernel[2];
  Sources sources{std::vector<int64_t>(channels * taps), std::vector<int64_t>(channels * taps)};
  const int64_t lines = pixels.folded ? 1 : kernel[1], run = run_entries(schedule);
  auto group = schedule.groups.begin();
  int64_t held = 0;
  for (int64_t line = 0; line < kernel[0] * lines; ++line) {
    for (int64_t at = 0; at < run; ++at) {
      if (at % schedule.lanes == 0 && held == group->vectors) {
        ++group;
        held = 0;
      }
      const int64_t across = at / pixels.channels, inner = at % pixels.channels;
      const int64_t down = pixels.folded ? inner / channels : line % lines, channel = inner % channels;
      const int64_t weight = ((channel * kernel[0] + line / lines) * kernel[1] + down) * kernel[2] + across;
      sources.at[weight] = group->sums + held * schedule.lanes + at % schedule.lanes;
      sources.step[weight] = group->vectors * schedule.lanes;
      if (at % schedule.lanes == schedule.lanes - 1 || at == run - 1) ++held;
    }
  }
  return sources;
}

}  // namespace

template <typename T>
void run_weight(const WeightSchedule& schedule, const T* pixels, const T* dy, int64_t begin, int64_t end,
                T* sums, T* result) {
  const auto& output = schedule.problem.output;
  const int64_t positions = output[0] * output[2] * output[3] * output[4];
  const int64_t first = schedule.row_blocks[begin], last = schedule.row_blocks[end];
  for (const WeightGroup& group : schedule.groups) {
    const int64_t a_row = group.vectors * schedule.lanes;
    std::fill(sums + group.sums + first * a_row, sums + group.sums + last * a_row, T(0));
  }
  std::vector<T> packed(kRun * (last - first));
  int64_t offsets[kRun];
  for (int64_t at = 0; at < positions; at += kRun) {
    const Run run = {at, std::min(positions, at + kRun)};
    position_offsets(schedule, run, offsets);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = schedule.row_blocks[block];
      pack_positions(schedule.problem, dy, row, schedule.row_blocks[block + 1] - row, run,
                     packed.data() + (row - first) * (run.end - run.begin));
    }
    add_run(schedule, pixels, packed.data(), offsets, run, begin, end, sums);
  }
  const Sources sources = find_sources(schedule);
  const int64_t weights = sources.at.size();
  for (int64_t row = first; row < last; ++row) {
    for (int64_t i = 0; i < weights; ++i) {
      result[row * weights + i] = sums[sources.at[i] + row * sources.step[i]];
    }
  }
}

#define VLEAK_CONV_WEIGHT(T)                                                                       \
  template void copy_pixels<T>(const WeightSchedule&, const View<const T>&, int64_t, int64_t, T*); \
  template void run_weight<T>(const WeightSchedule&, const T*, const T*, int64_t, int64_t, T*, T*);
VLEAK_CONV_WEIGHT(float)
VLEAK_CONV_WEIGHT(double)

}  // namespace vleak
