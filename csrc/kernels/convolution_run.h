// The steps of a planned convolution. Every step works on a range of independent pieces, which the caller
// spreads over threads; no result depends on the ranges.
#pragma once

#include <algorithm>

#include "kernels/convolution_plan.h"
#include "kernels/dispatch.h"
#include "kernels/transpose.h"

namespace vleak {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Packing

// The entries of one variant of a line that lie inside the input: [begin, end), starting at input entry
// `first`.
struct Inside {
  int64_t begin;
  int64_t end;
  int64_t first;
};

std::vector<Inside> all_inside(const Lines& lines, int64_t size) {
  std::vector<Inside> ranges;
  for (int64_t variant = 0; variant < lines.variants; ++variant) {
    const int64_t first = lines.first + variant;
    const auto [begin, end] = inside(first, lines.stride, size, lines.length);
    ranges.push_back({begin, end, first + begin * lines.stride});
  }
  return ranges;
}

// to[i] = from[i * step]; the compiler vectorises the constant steps.
template <typename T>
VLEAK_INLINE void copy_strided(const T* from, int64_t count, int64_t step, T* to) {
  if (step == 1) {
    std::copy_n(from, count, to);
  } else if (step == 2) {
    int64_t i = 0;
    // The last four would read one entry beyond the end.
    for (; i + 4 < count; i += 4) copy_even(from + 2 * i, to + i);
    for (; i < count; ++i) to[i] = from[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
  }
}

// line[begin, end) = from, with zeros around it. Most borders are narrower than four entries.
template <typename T>
VLEAK_INLINE void copy_line(const T* from, int64_t step, const Inside& inside, int64_t length, T* line) {
  if (length >= 4 && inside.begin <= 4 && length - inside.end <= 4) {
    for (int64_t i = 0; i < 4; ++i) line[i] = line[length - 4 + i] = T(0);
  } else {
    std::fill_n(line, length, T(0));
  }
  copy_strided(from, inside.end - inside.begin, step, line + inside.begin);
}

// Copies one plane; entries outside the input are 0.
template <typename T>
void copy_plane(const Planes& planes, const std::vector<Inside>& rows, const std::vector<Inside>& columns,
                const T* plane, int64_t row_stride, int64_t column_stride, T* copy) {
  const int64_t length = planes.columns.length, step = planes.columns.stride * column_stride;
  for (size_t across = 0; across < columns.size(); ++across) {
    for (size_t down = 0; down < rows.size(); ++down) {
      T* line = copy + across * planes.column_variant + down * planes.row_variant;
      const Inside &in_rows = rows[down], &in_line = columns[across];
      for (int64_t i = 0; i < planes.rows.length; ++i, line += planes.row) {
        if (i < in_rows.begin || i >= in_rows.end || in_line.begin >= in_line.end) {
          std::fill_n(line, length, T(0));
          continue;
        }
        const int64_t row = in_rows.first + (i - in_rows.begin) * planes.rows.stride;
        copy_line(plane + row * row_stride + in_line.first * column_stride, step, in_line, length, line);
      }
    }
  }
}

// begin, end: planes of [image * channel * frame] of one input, whose channels start at `first_channel`.
template <typename T>
void copy_planes(const Planes& planes, const View<const T>& input, int64_t first_channel, int64_t begin,
                 int64_t end, T* copy) {
  const int64_t channels = input.sizes[1], frames = input.sizes[2];
  const std::vector<Inside> rows = all_inside(planes.rows, input.sizes[3]);
  const std::vector<Inside> columns = all_inside(planes.columns, input.sizes[4]);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t frame = at % frames, channel = at / frames % channels, image = at / frames / channels;
    const T* from =
        input.data + image * input.strides[0] + channel * input.strides[1] + frame * input.strides[2];
    T* to = copy + (image * frames + frame) * planes.frame + (first_channel + channel) * planes.channel;
    copy_plane(planes, rows, columns, from, input.strides[3], input.strides[4], to);
  }
}

// Packs one channel of a block of rows for one tap in time, as [row tap, column tap][row].
template <typename T>
void pack_taps(const Axis& down, const Axis& across, const T* from, int64_t row_stride, int64_t kernel_width,
               int64_t rows, T* to) {
  const T* lines[kMaxTileRows];
  for (int64_t row = 0; row < rows; ++row) lines[row] = from + row * row_stride;
  const int64_t taps = down.taps * across.taps;
  if (down.weight_step == 1) return transpose(lines, rows, taps, to, rows);
  if (down.weight_step == -1 && across.weight_step == -1) {
    return transpose(lines, rows, taps, to + (taps - 1) * rows, -rows);
  }
  for (int64_t i = 0; i < down.taps; ++i) {
    const int64_t line = (down.weight_first + down.weight_step * i) * kernel_width + across.weight_first;
    for (int64_t j = 0; j < across.taps; ++j) {
      for (int64_t row = 0; row < rows; ++row) *to++ = lines[row][line + across.weight_step * j];
    }
  }
}

// begin, end: blocks of rows. Packed as [block][frame tap, channel, row tap, column tap][row of the block];
// the weight's channels start at `first_channel` of `channels`.
template <typename T>
void pack_weight(const Schedule& schedule, const WeightView<T>& weight, int64_t first_channel,
                 int64_t channels, int64_t begin, int64_t end, T* packed) {
  const auto& [time, down, across] = schedule.axes;
  const int64_t taps = down.taps * across.taps, depth = time.taps * channels * taps;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = schedule.row_blocks[block], rows = schedule.row_blocks[block + 1] - first;
    for (int64_t t = 0; t < time.taps; ++t) {
      const int64_t frame = time.weight_first + time.weight_step * t;
      const T* from = weight.data + first * weight.row_stride + frame * weight.kernel[1] * weight.kernel[2];
      T* to = packed + first * depth + (t * channels + first_channel) * taps * rows;
      for (int64_t channel = 0; channel < weight.channels; ++channel) {
        pack_taps(down, across, from + channel * weight.channel_stride, weight.row_stride, weight.kernel[2],
                  rows, to + channel * taps * rows);
      }
    }
  }
}

// Writes those lanes of a vector that are outputs, row by row.
template <typename T>
void store_lanes(const T* sums, int64_t lanes, const Lane& at, const Schedule& schedule, const Planes& planes,
                 T* plane) {
  const int64_t rows = schedule.axes[1].count, columns = schedule.axes[2].count;
  int64_t row = at.row, column = at.column;
  while (lanes > 0 && row < rows) {
    const int64_t width = planes.columns.spread ? planes.columns.length - column : lanes;
    const int64_t count = std::min(lanes, columns - column);
    for (int64_t i = 0; i < count; ++i) plane[row * columns + column + i] = sums[i];
    sums += width;
    lanes -= width;
    ++row;
    column = 0;
  }
}

// The vectors of one group in the form that a tile takes.
struct Targets {
  int64_t count;
  int64_t bases[kMaxTileVectors];
  int64_t direct[kMaxTileVectors];
};

Targets targets_of(const Schedule& schedule, const Group& group) {
  Targets targets{group.end - group.begin, {}, {}};
  for (int64_t v = 0; v < targets.count; ++v) {
    targets.bases[v] = schedule.vectors[group.begin + v].base;
    targets.direct[v] = schedule.vectors[group.begin + v].direct;
  }
  return targets;
}

// begin, end: groups. bias: [row]. output is contiguous.
template <typename T>
void run_groups(const Schedule& schedule, const Planes& planes, const T* packed, const T* copy, const T* bias,
                int64_t begin, int64_t end, const View<T>& output) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t lanes = kernels.tile_limits().lanes, channel = output.strides[1];
  const int64_t depth = schedule.offsets.size(),
                a_frame = depth / std::max<int64_t>(1, schedule.axes[0].taps);
  alignas(64) T sums[kMaxTileBytes / sizeof(T)];
  int64_t side_by_side[kMaxTileVectors];
  for (int64_t v = 0; v < kMaxTileVectors; ++v) side_by_side[v] = v * lanes;
  for (int64_t at = begin; at < end; ++at) {
    const Group& group = schedule.groups[at];
    const Targets targets = targets_of(schedule, group);
    const int64_t skipped = group.taps.begin * a_frame, count = (group.taps.end - group.taps.begin) * a_frame;
    const int64_t* offsets = schedule.offsets.data() + skipped;
    for (size_t block = 0; block + 1 < schedule.row_blocks.size(); ++block) {
      const int64_t first = schedule.row_blocks[block], rows = schedule.row_blocks[block + 1] - first;
      const Tile<T> run = kernels.tile(rows, targets.count);
      const T* left = packed + first * depth + skipped * rows;
      T* plane = output.data + first * channel;
      if (group.direct) {
        run(left, copy, offsets, count, targets.bases, bias + first, plane, channel, targets.direct);
        continue;
      }
      run(left, copy, offsets, count, targets.bases, bias + first, sums, targets.count * lanes, side_by_side);
      for (int64_t i = 0; i < rows * targets.count; ++i) {
        const Lane& lane = schedule.vectors[group.begin + i % targets.count];
        store_lanes(sums + i * lanes, lanes, lane, schedule, planes,
                    plane + i / targets.count * channel + lane.frame);
      }
    }
  }
}

// line[phase + i * step] = from[phase][i]; the compiler vectorises the case of two phases.
template <typename T>
void weave_line(const T* const* from, int64_t step, int64_t size, T* line) {
  if (step == 2) {
    const T *even = from[0], *odd = from[1];
    for (int64_t i = 0; i < size / 2; ++i) {
      line[2 * i] = even[i];
      line[2 * i + 1] = odd[i];
    }
    if (size % 2) line[size - 1] = even[size / 2];
    return;
  }
  for (int64_t phase = 0; phase < std::min(step, size); ++phase) {
    for (int64_t i = 0; phase + i * step < size; ++i) line[phase + i * step] = from[phase][i];
  }
}

// Interleaves the tensors of all phases: part [frame phase, row phase, column phase] holds every strides-th
// entry from that phase on. begin, end: lines of [image * channel * frame * row].
template <typename T>
void weave(const std::vector<View<T>>& parts, const std::array<int64_t, 3>& strides,
           const std::array<int64_t, 5>& sizes, int64_t begin, int64_t end, T* output) {
  const int64_t frames = sizes[2], rows = sizes[3], columns = sizes[4];
  std::vector<const T*> from(strides[2]);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t row = at % rows, frame = at / rows % frames, plane = at / rows / frames;
    const int64_t frame_phase = frame % strides[0], row_phase = row % strides[1];
    const int64_t in_frames = divide_up(frames - frame_phase, strides[0]);
    const int64_t in_rows = divide_up(rows - row_phase, strides[1]);
    const int64_t line = (plane * in_frames + frame / strides[0]) * in_rows + row / strides[1];
    for (int64_t phase = 0; phase < strides[2]; ++phase) {
      const View<T>& part = parts[(frame_phase * strides[1] + row_phase) * strides[2] + phase];
      from[phase] = part.data + line * divide_up(std::max<int64_t>(0, columns - phase), strides[2]);
    }
    weave_line(from.data(), strides[2], columns, output + at * columns);
  }
}

}  // namespace
}  // namespace vleak
