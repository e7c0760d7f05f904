// Convolutions in two and three dimensions and their two derivatives, on the tiles of product.h.
//
// Everything here works on ranges of independent pieces, so that the caller can spread them over threads; no
// result depends on how. Compiled once: only the tiles know the instruction set.
#pragma once

#include <array>
#include <vector>

#include "kernels/common.h"
#include "kernels/product.h"

namespace vleak {

// A view of a tensor [batch, channel, frame, row, column], strides in entries.
template <typename T>
struct View {
  T* data;
  std::array<int64_t, 5> sizes;
  std::array<int64_t, 5> strides;
};

// ---------------------------------------------------------------------------------------------------------
// Sums over taps: the convolution and its derivative with respect to the input

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
Axis forward_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding);

// Its derivative: every stride-th entry of the input from `phase` on, which all meet the same taps.
Axis backward_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t phase);

// How one axis of the input is copied: entry i of variant v is input entry first + stride * i + v. With one
// variant for every phase of the stride, the entries that successive outputs read lie side by side. Spread
// over one variant for every tap, they do so in rows without borders, which then join into long ones.
struct Lines {
  int64_t first;
  int64_t stride;
  int64_t variants;
  int64_t length;
  bool spread;
};

// The padded copy of all inputs. Spread, [image, frame, channel, column variant, row variant, row, column]: a
// plane is one long row. Otherwise [image, frame, row variant, row, channel, column variant, column]: what a
// tile reads for all channels is as few streams as it meets rows.
struct Planes {
  int64_t batch;
  int64_t channels;
  int64_t frames;
  Lines rows;
  Lines columns;
  // From one to the next.
  int64_t frame;
  int64_t channel;
  int64_t row_variant;
  int64_t column_variant;
  int64_t row;
};

// Entries of the copy, with room for a vector to run over its end.
int64_t planes_entries(const Planes& planes);

// The layout in which every part of a problem finds its inputs.
Planes plan_planes(const std::vector<Axes>& parts, int64_t batch, int64_t channels, int64_t lanes);

// begin, end: planes of [image * channel * frame] of one input, whose channels start at `first_channel`.
template <typename T>
void copy_planes(const Planes& planes, const View<const T>& input, int64_t first_channel, int64_t begin,
                 int64_t end, T* copy);

// Outputs that one vector of sums stands for: `lanes` along a row, going on in the next row where spread.
struct Lane {
  int64_t base;   // of its first input in the copy
  int64_t frame;  // of its output frame in the output, for channel 0
  int64_t row;
  int64_t column;
  int64_t direct;  // where its lanes lie in the output, if they lie there side by side; else -1
};

// Vectors of one tile that meet the same taps in time, [first_tap, last_tap).
struct Group {
  int64_t begin;
  int64_t end;
  int64_t first_tap;
  int64_t last_tap;
  bool direct;  // all of them
};

// What a part of a problem needs to run: its vectors in groups, and where each tap of each channel lies.
struct Schedule {
  Axes axes;
  std::vector<Lane> vectors;
  std::vector<Group> groups;
  std::vector<int64_t> offsets;     // [frame tap, channel, row tap, column tap]
  std::vector<int64_t> row_blocks;  // first row of each block of output channels, and the end
};

// output: strides of the dense result.
Schedule plan_schedule(const Axes& axes, const Planes& planes, int64_t rows,
                       const std::array<int64_t, 5>& output, const TileLimits& limits);

// How a weight is read: weight[row * row_stride + channel * channel_stride + the three axes].
template <typename T>
struct WeightView {
  const T* data;
  int64_t channels;
  int64_t row_stride;
  int64_t channel_stride;
  std::array<int64_t, 3> kernel;
};

// begin, end: blocks of rows. Packed as [block][frame tap, channel, row tap, column tap][row of the block];
// the weight's channels start at `first_channel` of `channels`.
template <typename T>
void pack_weight(const Schedule& schedule, const WeightView<T>& weight, int64_t first_channel,
                 int64_t channels, int64_t begin, int64_t end, T* packed);

// begin, end: groups. bias: [row]. output is dense.
template <typename T>
void run_groups(const Schedule& schedule, const Planes& planes, const T* packed, const T* copy, const T* bias,
                int64_t begin, int64_t end, const View<T>& output);

// One dense tensor from those of its phases: part [(frame phase, row phase, column phase)] holds every
// strides-th entry from that phase on. begin, end: lines of [image * channel * frame * row].
template <typename T>
void weave(const std::vector<const T*>& parts, const std::array<int64_t, 3>& strides,
           const std::array<int64_t, 5>& sizes, int64_t begin, int64_t end, T* output);

// ---------------------------------------------------------------------------------------------------------
// Sums over positions: the derivative with respect to the weight

// The input as [image, frame, row, column, channel], padded in space. Folded, a channel is one of the rows
// that a kernel meets times one of the input's channels: few channels then fill a vector.
struct Pixels {
  bool folded;
  int64_t channels;
  int64_t rows;
  int64_t row_step;  // from output row to output row
  int64_t columns;
};

struct WeightProblem {
  std::array<int64_t, 3> kernel;
  std::array<int64_t, 3> stride;
  std::array<int64_t, 3> padding;
  std::array<int64_t, 5> input;   // sizes of x
  std::array<int64_t, 5> output;  // sizes of dy
};

// Vectors of weights that one tile holds, all of the same tap in time.
struct WeightGroup {
  int64_t frame_tap;
  int64_t vectors;
  int64_t bases[kMaxTileVectors];
  int64_t at[kMaxTileVectors];  // in the sums of a row
};

struct WeightSchedule {
  WeightProblem problem;
  Pixels pixels;
  int64_t lanes;
  std::vector<WeightGroup> groups;
  std::vector<int64_t> row_blocks;
  int64_t a_row;  // entries of sums for one output channel
};

WeightSchedule plan_weight(const WeightProblem& problem, const TileLimits& limits);

int64_t pixels_entries(const WeightSchedule& schedule);

// begin, end: frames of [image * frame]. x is dense.
template <typename T>
void copy_pixels(const WeightSchedule& schedule, const T* x, int64_t begin, int64_t end, T* pixels);

// begin, end: blocks of output channels. dy is dense; sums is scratch space, [row][a_row]; result is
// [row][channel][taps].
template <typename T>
void run_weight(const WeightSchedule& schedule, const T* pixels, const T* dy, int64_t begin, int64_t end,
                T* sums, T* result);

// ---------------------------------------------------------------------------------------------------------
// Shared

// Cuts `count` rows into nearly equal blocks of at most `most`, of a multiple of four rows where that is no
// more blocks: the first row of each, and the end.
std::vector<int64_t> cut_rows(int64_t count, int64_t most);

// Vectors a tile should hold for this many rows and vectors: the choice of least estimated time.
int64_t best_vectors(int64_t rows, int64_t vectors, const TileLimits& limits);

VLEAK_INLINE int64_t most_rows(int64_t vectors, const TileLimits& limits) {
  const int64_t rows = limits.sums / vectors;
  return rows < limits.most_rows ? rows : limits.most_rows;
}

VLEAK_INLINE int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace vleak
