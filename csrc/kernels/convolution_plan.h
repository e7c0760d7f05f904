// The plan of a convolution, or of its derivative with respect to the input: a sum over taps.
#pragma once

#include <array>
#include <vector>

#include "kernels/blocking.h"
#include "kernels/convolution.h"

namespace vleak {

// One axis: out[o] = sum over taps of
//   in[o * stride + start + tap] * weight[weight_first + weight_step * tap], in being 0 outside [0, size).
struct Axis {
  int64_t size;
  int64_t count;
  int64_t taps;
  int64_t stride;
  int64_t start;
  int64_t weight_first;
  int64_t weight_step;
};

using Axes = std::array<Axis, 3>;  // frame, row, column

// The convolution itself.
Axis forward_axis(const ConvolutionShape& shape, int axis);

// Its derivative with respect to the input, for every stride-th input entry from `phase` on: all of these
// meet the same taps.
Axis backward_axis(const ConvolutionShape& shape, int axis, int64_t phase);

// How one axis of the input is copied: entry i of variant v is input entry first + stride * i + v. With one
// variant per phase of the stride, the entries that successive outputs read are contiguous. With one variant
// per tap ("spread"), rows have no borders and join into long ones.
struct Lines {
  int64_t first;
  int64_t stride;
  int64_t variants;
  int64_t length;
  bool spread;
};

// The padded copy of all inputs. Spread: [image, frame, channel, column variant, row variant, row, column], a
// plane is one long row. Otherwise: [image, frame, row variant, row, channel, column variant, column], so
// that a tile reads one stream of memory per row for all channels.
struct Planes {
  int64_t batch;
  int64_t channels;
  int64_t frames;
  Lines rows;
  Lines columns;
  // Strides, in entries.
  int64_t frame;
  int64_t channel;
  int64_t row_variant;
  int64_t column_variant;
  int64_t row;
};

// Entries of the copy, with room for a vector to read beyond its end.
int64_t planes_entries(const Planes& planes);

// The layout that holds the inputs of every part of a problem.
Planes plan_planes(const std::vector<Axes>& parts, int64_t batch, int64_t channels, int64_t lanes);

// The outputs of one vector of sums: `lanes` entries along a row, continued in the next row where spread.
struct Lane {
  int64_t base;   // offset of its first input in the copy
  int64_t frame;  // offset of its output frame in the output, for channel 0
  int64_t row;
  int64_t column;
  int64_t direct;  // offset in the output if all lanes are contiguous there, else -1
};

// Vectors of one tile, which meet the same taps in time.
struct Group {
  int64_t begin;
  int64_t end;
  Range taps;
  bool direct;  // every lane is direct
};

// The schedule of one part of a problem: its vectors in groups, and the offset of each tap of each channel.
struct Schedule {
  Axes axes;
  std::vector<Lane> vectors;
  std::vector<Group> groups;
  std::vector<int64_t> offsets;     // [frame tap, channel, row tap, column tap]
  std::vector<int64_t> row_blocks;  // first row of each block of output channels, and the end
};

// output: strides of the contiguous result.
Schedule plan_schedule(const Axes& axes, const Planes& planes, int64_t rows,
                       const std::array<int64_t, 5>& output, const TileLimits& limits);

}  // namespace vleak
