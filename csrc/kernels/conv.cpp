#include "kernels/conv.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/transpose.h"

namespace vleak {
namespace {

// About a third of the smallest second cache in use.
constexpr int64_t kBandBytes = 300 << 10;

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Shared

std::vector<int64_t> cut_rows(int64_t count, int64_t most) {
  const int64_t blocks = divide_up(count, most),
                fours = divide_up(divide_up(count, std::max<int64_t>(1, blocks)), 4) * 4;
  std::vector<int64_t> cuts;
  for (int64_t block = 0; block <= blocks; ++block) {
    cuts.push_back(fours <= most ? std::min(count, block * fours)
                                 : block * count / std::max<int64_t>(1, blocks));
  }
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
    const double loads = height + 2.0 * width + 1.0;
    const double step = std::max({height * width, loads, 8.0}) + 0.15 * loads;
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
  return {size, count, kernel, stride, -padding, 0, 1};
}

Axis backward_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t phase) {
  const int64_t outputs = (size + 2 * padding - kernel) / stride + 1;
  const int64_t count = divide_up(std::max<int64_t>(0, size - phase), stride);
  const int64_t first_tap = (phase + padding) % stride;
  const int64_t taps = divide_up(std::max<int64_t>(0, kernel - first_tap), stride);
  const int64_t start = (phase + padding) / stride - (taps - 1);
  return {outputs, count, taps, 1, start, first_tap + stride * (taps - 1), -stride};
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

void set_strides(Planes& planes) {
  const Lines &rows = planes.rows, &columns = planes.columns;
  planes.frame = planes.channels * columns.variants * rows.variants * rows.length * columns.length;
  if (columns.spread) {
    planes.row = columns.length;
    planes.row_variant = rows.length * planes.row;
    planes.column_variant = rows.variants * planes.row_variant;
    planes.channel = columns.variants * planes.column_variant;
  } else {
    planes.column_variant = columns.length;
    planes.channel = columns.variants * planes.column_variant;
    planes.row = planes.channels * planes.channel;
    planes.row_variant = rows.length * planes.row;
  }
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
  Planes planes{batch, channels, parts[0][0].size, plan_lines(parts, 1, false), columns, 0, 0, 0, 0, 0};
  set_strides(planes);
  return planes;
}

int64_t planes_entries(const Planes& planes) {
  return planes.batch * planes.frames * planes.frame + kMaxTileBytes / static_cast<int64_t>(sizeof(float));
}

namespace {

// The entries of one variant of a line that lie inside the input: [begin, end), from input entry `first` on.
struct Inside {
  int64_t begin;
  int64_t end;
  int64_t first;
};

Inside inside(const Lines& lines, int64_t variant, int64_t size) {
  const int64_t first = lines.first + variant, step = lines.stride;
  const int64_t begin = std::clamp<int64_t>(divide_up(std::max<int64_t>(0, -first), step), 0, lines.length);
  const int64_t end =
      std::clamp<int64_t>(divide_up(std::max<int64_t>(0, size - first), step), begin, lines.length);
  return {begin, end, first + begin * step};
}

std::vector<Inside> all_inside(const Lines& lines, int64_t size) {
  std::vector<Inside> found;
  for (int64_t variant = 0; variant < lines.variants; ++variant)
    found.push_back(inside(lines, variant, size));
  return found;
}

// to[i] = from[i * step]; steps that are known become vector code.
template <typename T>
VLEAK_INLINE void copy_strided(const T* from, int64_t count, int64_t step, T* to) {
  if (step == 1) {
    std::copy_n(from, count, to);
  } else if (step == 2) {
    int64_t i = 0;
    // The last four would read one entry more than there may be.
    for (; i + 4 < count; i += 4) copy_even(from + 2 * i, to + i);
    for (; i < count; ++i) to[i] = from[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
  }
}

// line[begin, end) = from, 0 around it. A border is mostly narrower than four entries.
template <typename T>
VLEAK_INLINE void copy_line(const T* from, int64_t step, const Inside& inside, int64_t length, T* line) {
  if (length >= 4 && inside.begin <= 4 && length - inside.end <= 4) {
    for (int64_t i = 0; i < 4; ++i) line[i] = line[length - 4 + i] = T(0);
  } else {
    std::fill_n(line, length, T(0));
  }
  copy_strided(from, inside.end - inside.begin, step, line + inside.begin);
}

// plane: rows and columns with these strides. What lies outside is 0.
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

}  // namespace

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

// ---------------------------------------------------------------------------------------------------------
// Schedule

namespace {

// [channel, row tap, column tap] of the first tap in time, then the same one frame on, and so on.
std::vector<int64_t> tap_offsets(const Axes& axes, const Planes& planes) {
  std::vector<int64_t> offsets;
  if (reads_nothing(axes)) return offsets;
  offsets.reserve(axes[0].taps * planes.channels * axes[1].taps * axes[2].taps);
  for (int64_t t = 0; t < axes[0].taps; ++t) {
    for (int64_t channel = 0; channel < planes.channels; ++channel) {
      for (int64_t i = 0; i < axes[1].taps; ++i) {
        const Place down = place(planes.rows, axes[1].start + i);
        for (int64_t j = 0; j < axes[2].taps; ++j) {
          const Place across = place(planes.columns, axes[2].start + j);
          offsets.push_back(t * planes.frame + channel * planes.channel + down.variant * planes.row_variant +
                            down.index * planes.row + across.variant * planes.column_variant + across.index);
        }
      }
    }
  }
  return offsets;
}

// Output rows [begin, end) of one frame.
struct Band {
  int64_t begin;
  int64_t end;
};

// Rows that are run through all frames before the next ones: what they read stays in the second cache.
int64_t band_rows(const Axes& axes, const Planes& planes, int64_t entry_bytes) {
  if (planes.columns.spread) return axes[1].count;
  const int64_t bytes = planes.row * entry_bytes * std::max<int64_t>(1, axes[0].taps);
  return std::max<int64_t>(4, kBandBytes / bytes - axes[1].taps);
}

void add_band_vectors(const Axes& axes, const Planes& planes, int64_t lanes, Band band, int64_t base,
                      int64_t frame, std::vector<Lane>& vectors) {
  const Axis &down = axes[1], &across = axes[2];
  const int64_t pitch = planes.columns.length, columns = across.count;
  if (planes.columns.spread) {
    const bool dense = pitch == columns;
    for (int64_t at = 0; at < down.count * pitch; at += lanes) {
      const int64_t direct = dense && at + lanes <= down.count * pitch ? frame + at : -1;
      vectors.push_back({base + at, frame, at / pitch, at % pitch, direct});
    }
    return;
  }
  for (int64_t row = band.begin; row < band.end; ++row) {
    const int64_t start = frame + row * columns;
    for (int64_t at = 0; at < columns; at += lanes) {
      vectors.push_back(
          {base + row * planes.row + at, frame, row, at, at + lanes <= columns ? start + at : -1});
    }
  }
}

// Cuts the vectors from `begin` on into groups of nearly equal size.
void add_groups(const std::vector<Lane>& vectors, int64_t begin, int64_t most, int64_t first_tap,
                int64_t last_tap, std::vector<Group>& groups) {
  const int64_t count = static_cast<int64_t>(vectors.size()) - begin, blocks = divide_up(count, most);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t from = begin + i * count / blocks, to = begin + (i + 1) * count / blocks;
    const bool direct = std::all_of(vectors.begin() + from, vectors.begin() + to,
                                    [](const Lane& lane) { return lane.direct >= 0; });
    groups.push_back({from, to, first_tap, last_tap, direct});
  }
}

// The taps that find an input frame for outputs that start at input frame `start`, [begin, end).
std::array<int64_t, 2> valid_taps(const Axis& time, int64_t start) {
  const int64_t begin = std::clamp<int64_t>(-start, 0, time.taps);
  const int64_t end = std::clamp<int64_t>(time.size - start, begin, time.taps);
  return {begin, end};
}

}  // namespace

Schedule plan_schedule(const Axes& axes, const Planes& planes, int64_t rows,
                       const std::array<int64_t, 5>& output, const TileLimits& limits) {
  Schedule plan{axes, {}, {}, tap_offsets(axes, planes), {}};
  const Axis &time = axes[0], &down = axes[1];
  const int64_t per_frame = planes.batch * vectors_a_plane(axes, planes.columns, limits.lanes);
  const int64_t held = best_vectors(rows, std::max<int64_t>(1, per_frame), limits);
  plan.row_blocks = cut_rows(rows, most_rows(held, limits));
  plan.vectors.reserve(per_frame * time.count);
  std::array<int64_t, 2> taps = {0, 0};
  int64_t begin = 0;
  const int64_t band = band_rows(axes, planes, limits.entry_bytes);
  for (int64_t row = 0; row < down.count; row += band) {
    for (int64_t frame = 0; frame < time.count; ++frame) {
      const int64_t start = frame * time.stride + time.start;
      const auto valid = plan.offsets.empty() ? std::array<int64_t, 2>{0, 0} : valid_taps(time, start);
      if (valid != taps) {
        add_groups(plan.vectors, begin, held, taps[0], taps[1], plan.groups);
        begin = plan.vectors.size();
        taps = valid;
      }
      for (int64_t image = 0; image < planes.batch; ++image) {
        const int64_t base = (image * planes.frames + start) * planes.frame;
        const int64_t to = image * output[0] + frame * output[2];
        add_band_vectors(axes, planes, limits.lanes, {row, std::min(down.count, row + band)}, base, to,
                         plan.vectors);
      }
    }
  }
  add_groups(plan.vectors, begin, held, taps[0], taps[1], plan.groups);
  return plan;
}

// ---------------------------------------------------------------------------------------------------------
// Work

namespace {

// One channel of a block of rows, for one tap in time: [row tap, column tap][row].
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

}  // namespace

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

namespace {

// Writes the lanes of a vector that are outputs, row by row.
template <typename T>
void store_lanes(const T* sums, int64_t lanes, const Lane& at, const Schedule& schedule, const Planes& planes,
                 T* plane) {
  const int64_t rows = schedule.axes[1].count, columns = schedule.axes[2].count;
  int64_t row = at.row, column = at.column;
  while (lanes > 0 && row < rows) {
    const int64_t whole = planes.columns.spread ? planes.columns.length - column : lanes;
    const int64_t count = std::min(lanes, columns - column);
    for (int64_t i = 0; i < count; ++i) plane[row * columns + column + i] = sums[i];
    sums += whole;
    lanes -= whole;
    ++row;
    column = 0;
  }
}

// The vectors of one group, ready for the tiles.
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

}  // namespace

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
    const int64_t skipped = group.first_tap * a_frame, count = (group.last_tap - group.first_tap) * a_frame;
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

namespace {

// line[i * step] = from[i]; two that fill a line together become vector code.
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

}  // namespace

template <typename T>
void weave(const std::vector<const T*>& parts, const std::array<int64_t, 3>& strides,
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
      const T* part = parts[(frame_phase * strides[1] + row_phase) * strides[2] + phase];
      from[phase] = part + line * divide_up(std::max<int64_t>(0, columns - phase), strides[2]);
    }
    weave_line(from.data(), strides[2], columns, output + at * columns);
  }
}

#define VLEAK_CONV(T)                                                                                     \
  template void copy_planes<T>(const Planes&, const View<const T>&, int64_t, int64_t, int64_t, T*);       \
  template void pack_weight<T>(const Schedule&, const WeightView<T>&, int64_t, int64_t, int64_t, int64_t, \
                               T*);                                                                       \
  template void run_groups<T>(const Schedule&, const Planes&, const T*, const T*, const T*, int64_t,      \
                              int64_t, const View<T>&);                                                   \
  template void weave<T>(const std::vector<const T*>&, const std::array<int64_t, 3>&,                     \
                         const std::array<int64_t, 5>&, int64_t, int64_t, T*);

VLEAK_CONV(float)
VLEAK_CONV(double)

}  // namespace vleak
