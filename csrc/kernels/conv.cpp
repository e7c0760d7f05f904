#include "kernels/conv.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace vleak {

// ---------------------------------------------------------------------------------------------------------
// Shared

std::vector<int64_t> cut_rows(int64_t count, int64_t most) {
  const int64_t blocks = divide_up(count, most);
  std::vector<int64_t> cuts;
  for (int64_t block = 0; block <= blocks; ++block)
    cuts.push_back(block * count / std::max<int64_t>(1, blocks));
  return cuts;
}

int64_t best_vectors(int64_t rows, int64_t vectors, const TileLimits& limits) {
  int64_t best = 1;
  double least = 0.0;
  for (int64_t held = 1; held <= std::min(kMaxTileVectors, limits.sums); ++held) {
    const double row_blocks = divide_up(rows, most_rows(held, limits));
    const double vector_blocks = divide_up(vectors, held);
    const double height = rows / row_blocks, width = vectors / vector_blocks;
    // Half cycles of a step: multiplications, loads (those of vectors cross cache lines), latency.
    const double step = std::max({height * width, height + 2.0 * width + 1.0, 8.0});
    const double time = row_blocks * vector_blocks * step;
    if (held == 1 || time < least) {
      best = held;
      least = time;
    }
  }
  return best;
}

// ---------------------------------------------------------------------------------------------------------
// Layout

Axis forward_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  const int64_t count = (size + 2 * padding - kernel) / stride + 1;
  return {size, count, kernel, stride, -padding, 0, 1, 0, 1};
}

Axis backward_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t phase) {
  const int64_t outputs = (size + 2 * padding - kernel) / stride + 1;
  const int64_t count = divide_up(std::max<int64_t>(0, size - phase), stride);
  const int64_t first_tap = (phase + padding) % stride;
  const int64_t taps = divide_up(std::max<int64_t>(0, kernel - first_tap), stride);
  const int64_t start = (phase + padding) / stride - (taps - 1);
  return {outputs, count, taps, 1, start, first_tap + stride * (taps - 1), -stride, phase, stride};
}

namespace {

bool reads_nothing(const Axes& axes) {
  return std::any_of(axes.begin(), axes.end(), [](const Axis& a) { return a.count == 0 || a.taps == 0; });
}

// The lines that hold, for one axis of all parts, every entry that is read.
Lines plan_lines(const std::vector<Axes>& parts, int axis, bool spread) {
  int64_t first = INT64_MAX, last_start = INT64_MIN, end = INT64_MIN, longest = 0;
  for (const Axes& part : parts) {
    const Axis& a = part[axis];
    longest = std::max(longest, a.count);
    if (reads_nothing(part)) continue;
    first = std::min(first, a.start);
    last_start = std::max(last_start, a.start + a.taps);
    end = std::max(end, a.start + (a.count - 1) * a.stride + a.taps);
  }
  const int64_t stride = parts[0][axis].stride;
  if (end == INT64_MIN) return {0, 1, 1, longest, spread};
  if (spread) return {first, stride, last_start - first, longest, true};
  return {first, stride, stride, divide_up(end - first, stride), false};
}

// Where entry `at` of an axis lies: in which variant, and at which index of it.
struct Place {
  int64_t variant;
  int64_t index;
};

Place place(const Lines& lines, int64_t at) {
  const int64_t distance = at - lines.first;
  if (lines.spread) return {distance, 0};
  return {distance % lines.stride, distance / lines.stride};
}

int64_t vectors_a_plane(const Axes& axes, const Lines& columns, int64_t lanes) {
  if (columns.spread) return divide_up(axes[1].count * columns.length, lanes);
  return axes[1].count * divide_up(axes[2].count, lanes);
}

}  // namespace

Planes plan_planes(const std::vector<Axes>& parts, int64_t batch, int64_t channels, int64_t lanes) {
  const Lines wide = plan_lines(parts, 2, false), spread = plan_lines(parts, 2, true);
  int64_t in_rows = 0, in_planes = 0;
  for (const Axes& axes : parts) {
    in_rows += vectors_a_plane(axes, wide, lanes);
    in_planes += vectors_a_plane(axes, spread, lanes);
  }
  // Spreading makes the copy longer, so it has to save a tenth of the work at least.
  const Lines& columns = 10 * in_planes < 9 * in_rows ? spread : wide;
  return {batch, channels, parts[0][0].size, plan_lines(parts, 1, false), columns};
}

int64_t planes_entries(const Planes& planes) {
  return planes.batch * planes.channels * planes.frames * plane_size(planes) +
         kMaxTileBytes / static_cast<int64_t>(sizeof(float));
}

namespace {

// line[i] = row[(first + stride * i) * step] where that is inside [0, size), 0 elsewhere
template <typename T>
void copy_line(const T* row, int64_t size, int64_t step, const Lines& lines, int64_t variant, T* line) {
  const int64_t first = lines.first + variant;
  const int64_t begin =
      std::clamp<int64_t>(divide_up(std::max<int64_t>(0, -first), lines.stride), 0, lines.length);
  const int64_t end =
      std::clamp<int64_t>(divide_up(std::max<int64_t>(0, size - first), lines.stride), begin, lines.length);
  std::fill(line, line + begin, T(0));
  const int64_t jump = lines.stride * step;
  const T* from = row + (begin < end ? first * step + begin * jump : 0);
  if (jump == 1) {
    std::copy(from, from + (end - begin), line + begin);
  } else {
    for (int64_t i = begin; i < end; ++i) line[i] = from[(i - begin) * jump];
  }
  std::fill(line + end, line + lines.length, T(0));
}

template <typename T>
void copy_plane(const Planes& planes, const T* plane, int64_t height, int64_t width, int64_t row_stride,
                int64_t column_stride, T* copy) {
  for (int64_t across = 0; across < planes.columns.variants; ++across) {
    for (int64_t down = 0; down < planes.rows.variants; ++down) {
      for (int64_t i = 0; i < planes.rows.length; ++i, copy += planes.columns.length) {
        const int64_t row = planes.rows.first + planes.rows.stride * i + down;
        const bool inside = row >= 0 && row < height;
        copy_line(plane + (inside ? row * row_stride : 0), inside ? width : 0, column_stride, planes.columns,
                  across, copy);
      }
    }
  }
}

}  // namespace

template <typename T>
void copy_planes(const Planes& planes, const View<const T>& input, int64_t first_channel, int64_t begin,
                 int64_t end, T* copy) {
  const int64_t channels = input.sizes[1], frames = input.sizes[2];
  for (int64_t at = begin; at < end; ++at) {
    const int64_t frame = at % frames, channel = at / frames % channels, image = at / frames / channels;
    const T* from =
        input.data + image * input.strides[0] + channel * input.strides[1] + frame * input.strides[2];
    const int64_t to = (image * planes.channels + first_channel + channel) * frames + frame;
    copy_plane(planes, from, input.sizes[3], input.sizes[4], input.strides[3], input.strides[4],
               copy + to * plane_size(planes));
  }
}

// ---------------------------------------------------------------------------------------------------------
// Schedule

namespace {

// [channel, row tap, column tap] of the first tap in time, then the same one frame on, and so on.
std::vector<int64_t> tap_offsets(const Axes& axes, const Planes& planes) {
  const int64_t size = plane_size(planes), variant = planes.rows.length * planes.columns.length;
  std::vector<int64_t> offsets;
  if (reads_nothing(axes)) return offsets;
  offsets.reserve(axes[0].taps * planes.channels * axes[1].taps * axes[2].taps);
  for (int64_t t = 0; t < axes[0].taps; ++t) {
    for (int64_t channel = 0; channel < planes.channels; ++channel) {
      for (int64_t i = 0; i < axes[1].taps; ++i) {
        const Place down = place(planes.rows, axes[1].start + i);
        for (int64_t j = 0; j < axes[2].taps; ++j) {
          const Place across = place(planes.columns, axes[2].start + j);
          const int64_t plane = across.variant * planes.rows.variants + down.variant;
          offsets.push_back((channel * planes.frames + t) * size + plane * variant +
                            down.index * planes.columns.length + across.index);
        }
      }
    }
  }
  return offsets;
}

void add_plane_vectors(const Axes& axes, const Planes& planes, int64_t lanes, const Lane& corner,
                       std::vector<Lane>& vectors) {
  const int64_t pitch = planes.columns.length, rows = axes[1].count, columns = axes[2].count;
  if (planes.columns.spread) {
    for (int64_t at = 0; at < rows * pitch; at += lanes) {
      vectors.push_back({corner.base + at, corner.image, corner.frame, at / pitch, at % pitch});
    }
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t at = 0; at < columns; at += lanes) {
      vectors.push_back({corner.base + row * pitch + at, corner.image, corner.frame, row, at});
    }
  }
}

// Cuts the vectors from `begin` on into groups of nearly equal size.
void add_groups(int64_t begin, int64_t end, int64_t most, int64_t first_tap, int64_t last_tap,
                std::vector<Group>& groups) {
  const std::vector<int64_t> cuts = cut_rows(end - begin, most);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    groups.push_back({begin + cuts[i], begin + cuts[i + 1], first_tap, last_tap});
  }
}

}  // namespace

Schedule plan_schedule(const Axes& axes, const Planes& planes, int64_t rows, const TileLimits& limits) {
  Schedule plan{axes, {}, {}, tap_offsets(axes, planes), {}};
  const Axis& time = axes[0];
  const int64_t per_frame = planes.batch * vectors_a_plane(axes, planes.columns, limits.lanes);
  const int64_t held = best_vectors(rows, std::max<int64_t>(1, per_frame), limits);
  plan.row_blocks = cut_rows(rows, most_rows(held, limits));
  int64_t first_tap = 0, last_tap = 0, begin = 0;
  for (int64_t frame = 0; frame < time.count; ++frame) {
    const int64_t start = frame * time.stride + time.start;
    const int64_t first = std::clamp<int64_t>(-start, 0, time.taps);
    const int64_t last =
        plan.offsets.empty() ? first : std::clamp<int64_t>(time.size - start, first, time.taps);
    if (first != first_tap || last != last_tap) {
      add_groups(begin, plan.vectors.size(), held, first_tap, last_tap, plan.groups);
      begin = plan.vectors.size();
      first_tap = first;
      last_tap = last;
    }
    for (int64_t image = 0; image < planes.batch; ++image) {
      const int64_t plane = image * planes.channels * planes.frames + start;
      add_plane_vectors(axes, planes, limits.lanes, {plane * plane_size(planes), image, frame, 0, 0},
                        plan.vectors);
    }
  }
  add_groups(begin, plan.vectors.size(), held, first_tap, last_tap, plan.groups);
  return plan;
}

// ---------------------------------------------------------------------------------------------------------
// Work

template <typename T>
void pack_weight(const Schedule& schedule, const WeightView<T>& weight, int64_t first_channel,
                 int64_t channels, int64_t begin, int64_t end, T* packed) {
  const auto& [time, down, across] = schedule.axes;
  const int64_t taps = down.taps * across.taps, depth = time.taps * channels * taps;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = schedule.row_blocks[block], rows = schedule.row_blocks[block + 1] - first;
    for (int64_t t = 0; t < time.taps; ++t) {
      T* to = packed + first * depth + (t * channels + first_channel) * taps * rows;
      const int64_t frame = time.weight_first + time.weight_step * t;
      for (int64_t channel = 0; channel < weight.channels; ++channel) {
        const T* from = weight.data + first * weight.row_stride + channel * weight.channel_stride +
                        frame * weight.kernel[1] * weight.kernel[2];
        for (int64_t i = 0; i < down.taps; ++i) {
          const T* line = from + (down.weight_first + down.weight_step * i) * weight.kernel[2];
          for (int64_t j = 0; j < across.taps; ++j) {
            const T* entry = line + across.weight_first + across.weight_step * j;
            for (int64_t row = 0; row < rows; ++row) *to++ = entry[row * weight.row_stride];
          }
        }
      }
    }
  }
}

namespace {

// Writes the lanes of a vector that are outputs, row by row.
template <typename T>
void store_lanes(const T* sums, int64_t lanes, const Lane& at, const Schedule& schedule, const Planes& planes,
                 int64_t width, T* plane) {
  const Axis &down = schedule.axes[1], &across = schedule.axes[2];
  int64_t row = at.row, column = at.column;
  while (lanes > 0 && row < down.count) {
    const int64_t whole = planes.columns.spread ? planes.columns.length - column : lanes;
    const int64_t count = std::min(lanes, across.count - column);
    T* to =
        plane + (down.out_first + row * down.out_step) * width + across.out_first + column * across.out_step;
    if (across.out_step == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = sums[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[i * across.out_step] = sums[i];
    }
    sums += whole;
    lanes -= whole;
    ++row;
    column = 0;
  }
}

}  // namespace

template <typename T>
void run_groups(const Schedule& schedule, const Planes& planes, const T* packed, const T* copy, const T* bias,
                int64_t begin, int64_t end, const View<T>& output) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t lanes = kernels.tile_limits().lanes;
  const int64_t depth = schedule.offsets.size(),
                a_frame = depth / std::max<int64_t>(1, schedule.axes[0].taps);
  alignas(64) T sums[kMaxTileBytes / sizeof(T)];
  int64_t bases[kMaxTileVectors];
  for (int64_t at = begin; at < end; ++at) {
    const Group& group = schedule.groups[at];
    const int64_t vectors = group.end - group.begin, skipped = group.first_tap * a_frame;
    const Lane* lane = schedule.vectors.data() + group.begin;
    for (int64_t v = 0; v < vectors; ++v) bases[v] = lane[v].base;
    for (size_t block = 0; block + 1 < schedule.row_blocks.size(); ++block) {
      const int64_t first = schedule.row_blocks[block], rows = schedule.row_blocks[block + 1] - first;
      for (int64_t row = 0; row < rows; ++row) {
        std::fill_n(sums + row * vectors * lanes, vectors * lanes, bias ? bias[first + row] : T(0));
      }
      kernels.tile(rows, vectors)(packed + first * depth + skipped * rows, copy,
                                  schedule.offsets.data() + skipped,
                                  (group.last_tap - group.first_tap) * a_frame, bases, sums);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t frame = schedule.axes[0].out_first + lane[v].frame * schedule.axes[0].out_step;
          T* plane = output.data + lane[v].image * output.strides[0] + (first + row) * output.strides[1] +
                     frame * output.strides[2];
          store_lanes(sums + (row * vectors + v) * lanes, lanes, lane[v], schedule, planes, output.sizes[4],
                      plane);
        }
      }
    }
  }
}

#define VLEAK_CONV(T)                                                                                     \
  template void copy_planes<T>(const Planes&, const View<const T>&, int64_t, int64_t, int64_t, T*);       \
  template void pack_weight<T>(const Schedule&, const WeightView<T>&, int64_t, int64_t, int64_t, int64_t, \
                               T*);                                                                       \
  template void run_groups<T>(const Schedule&, const Planes&, const T*, const T*, const T*, int64_t,      \
                              int64_t, const View<T>&);
VLEAK_CONV(float)
VLEAK_CONV(double)

}  // namespace vleak
