#include "kernels/convolution_plan.h"

#include <algorithm>

namespace vleak {

// ---------------------------------------------------------------------------------------------------------
// Layout of the copied input

Axis forward_axis(const ConvolutionShape& shape, int axis) {
  return {shape.input[2 + axis],
          shape.output[2 + axis],
          shape.kernel[axis],
          shape.stride[axis],
          -shape.padding[axis],
          0,
          1};
}

Axis backward_axis(const ConvolutionShape& shape, int axis, int64_t phase) {
  const int64_t stride = shape.stride[axis], at = phase + shape.padding[axis], first_tap = at % stride;
  const int64_t count = divide_up(std::max<int64_t>(0, shape.input[2 + axis] - phase), stride);
  const int64_t taps = divide_up(std::max<int64_t>(0, shape.kernel[axis] - first_tap), stride);
  const int64_t start = at / stride - (taps - 1);
  return {shape.output[2 + axis], count, taps, 1, start, first_tap + stride * (taps - 1), -stride};
}

namespace {

bool reads_nothing(const Axes& axes) {
  return std::any_of(axes.begin(), axes.end(), [](const Axis& a) { return a.count == 0 || a.taps == 0; });
}

// The lines of one axis that hold every entry that some part reads.
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

// The variant and index of an entry of an axis.
struct Position {
  int64_t variant;
  int64_t index;
};

Position position(const Lines& lines, int64_t at) {
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
  // Spreading makes the copy longer, so it has to save at least a tenth of the work.
  const Lines& columns = 10 * in_planes < 9 * in_rows ? spread : wide;
  Planes planes{batch, channels, parts[0][0].size, plan_lines(parts, 1, false), columns, 0, 0, 0, 0, 0};
  set_strides(planes);
  return planes;
}

int64_t planes_entries(const Planes& planes) { return planes.batch * planes.frames * planes.frame + kSlack; }

// ---------------------------------------------------------------------------------------------------------
// Schedule

namespace {

// About a third of the smallest second-level cache in use.
constexpr int64_t kBandBytes = 300 << 10;

// Offsets in the copy: [frame tap, channel, row tap, column tap].
std::vector<int64_t> tap_offsets(const Axes& axes, const Planes& planes) {
  std::vector<int64_t> offsets;
  if (reads_nothing(axes)) return offsets;
  offsets.reserve(axes[0].taps * planes.channels * axes[1].taps * axes[2].taps);
  for (int64_t t = 0; t < axes[0].taps; ++t) {
    for (int64_t channel = 0; channel < planes.channels; ++channel) {
      for (int64_t i = 0; i < axes[1].taps; ++i) {
        const Position down = position(planes.rows, axes[1].start + i);
        for (int64_t j = 0; j < axes[2].taps; ++j) {
          const Position across = position(planes.columns, axes[2].start + j);
          offsets.push_back(t * planes.frame + channel * planes.channel + down.variant * planes.row_variant +
                            down.index * planes.row + across.variant * planes.column_variant + across.index);
        }
      }
    }
  }
  return offsets;
}

// Rows that are computed for all frames before the next rows: their inputs stay in the second-level cache.
int64_t band_rows(const Axes& axes, const Planes& planes, int64_t entry_bytes) {
  if (planes.columns.spread) return axes[1].count;
  const int64_t bytes = planes.row * entry_bytes * std::max<int64_t>(1, axes[0].taps);
  return std::max<int64_t>(4, kBandBytes / bytes - axes[1].taps);
}

// band: output rows of one frame.
void add_band_vectors(const Axes& axes, const Planes& planes, int64_t lanes, Range band, int64_t base,
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
void add_groups(const std::vector<Lane>& vectors, int64_t begin, int64_t most, Range taps,
                std::vector<Group>& groups) {
  const int64_t count = static_cast<int64_t>(vectors.size()) - begin, blocks = divide_up(count, most);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t from = begin + i * count / blocks, to = begin + (i + 1) * count / blocks;
    const bool direct = std::all_of(vectors.begin() + from, vectors.begin() + to,
                                    [](const Lane& lane) { return lane.direct >= 0; });
    groups.push_back({from, to, taps, direct});
  }
}

}  // namespace

Schedule plan_schedule(const Axes& axes, const Planes& planes, int64_t rows,
                       const std::array<int64_t, 5>& output, const TileLimits& limits) {
  Schedule plan{axes, {}, {}, tap_offsets(axes, planes), {}};
  const Axis &time = axes[0], &down = axes[1];
  const int64_t per_frame = planes.batch * vectors_a_plane(axes, planes.columns, limits.lanes);
  const int64_t tile_vectors = best_vectors(rows, std::max<int64_t>(1, per_frame), limits);
  plan.row_blocks = cut_rows(rows, most_rows(tile_vectors, limits));
  plan.vectors.reserve(per_frame * time.count);
  Range taps = {0, 0};
  int64_t begin = 0;
  const int64_t band = band_rows(axes, planes, limits.entry_bytes);
  for (int64_t row = 0; row < down.count; row += band) {
    for (int64_t frame = 0; frame < time.count; ++frame) {
      const int64_t start = frame * time.stride + time.start;
      const Range valid = plan.offsets.empty() ? Range{0, 0} : inside(start, 1, time.size, time.taps);
      if (valid != taps) {
        add_groups(plan.vectors, begin, tile_vectors, taps, plan.groups);
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
  add_groups(plan.vectors, begin, tile_vectors, taps, plan.groups);
  return plan;
}

}  // namespace vleak
