// The inner loops of all convolutions and products: blocks of sums that are held in registers. Compiled once
// per instruction set (tile_simd.cpp).
#pragma once

#include "kernels/common.h"

namespace vleak {

// sums[row * row_stride + at[vector] + lane] +=
//     sum over k of left[k][row] * right[offsets[k] + bases[vector] + lane]
//
// Where start is not null, sums are not read: they begin at start[row].
// left is packed; right is read at arbitrary offsets, so no operand is unfolded (no im2col). Every sum is
// accumulated in the order of k, whatever the shape of the block.
template <typename T>
using Tile = void (*)(const T* left /* [count, rows] */, const T* right, const int64_t* offsets /* [count] */,
                      int64_t count, const int64_t* bases /* [vectors] */, const T* start /* [rows] */,
                      T* sums, int64_t row_stride, const int64_t* at /* [vectors] */);

// A block of rows x vectors fits into the registers if rows <= most_rows, rows * vectors <= sums and vectors
// <= kMaxTileVectors.
struct TileLimits {
  int64_t lanes;
  int64_t sums;
  int64_t most_rows;
  int64_t entry_bytes;
};

// Upper bounds over all instruction sets.
constexpr int64_t kMaxTileVectors = 8;
constexpr int64_t kMaxTileRows = 12;
constexpr int64_t kMaxTileBytes = 24 * 64;

// Entries that a tile may read beyond an end.
constexpr int64_t kSlack = kMaxTileBytes / sizeof(float);

constexpr int64_t kLineBytes = 64;  // a cache line

// Rows to prefetch while another block is computed: `lines_a_step` cache lines at every step of that block,
// which has one step per cache line of its depth.
template <typename T>
struct Ahead {
  const T* first;
  int64_t stride;
  int64_t rows;
  int64_t entries;
  int64_t lines_a_step;
};

// sums[row * sums_stride + i] += sum over k of left[row * left_stride + k] * right[k * right_stride + i]
//
// Nothing is packed. Where fresh is set, sums are not read: they begin at 0. Every sum is accumulated in the
// order of k, whatever the shape of the block.
template <typename T>
struct Block {
  const T* left;
  int64_t left_stride;
  const T* right;
  int64_t right_stride;
  int64_t depth;
  T* sums;
  int64_t sums_stride;
  bool fresh;
  Ahead<T> next;
};

// For a fixed number of rows and vectors that fit as for a tile, with vectors <= kMaxBlockVectors.
template <typename T>
using BlockProduct = void (*)(const Block<T>& block);

constexpr int64_t kMaxBlockVectors = 3;

// One summand of a row: where its entries begin, and its factor.
template <typename T>
struct Term {
  int32_t at;
  T factor;
};

// sums[i] += sum over terms of factor * right[at + i], for i < row_entries
//
// Where fresh is set, sums are not read: they begin at 0. `next` is prefetched meanwhile.
template <typename T>
struct Row {
  const Term<T>* terms;
  int64_t count;
  const T* right;
  T* sums;
  bool fresh;
  const T* next;
  int64_t next_entries;
};

// Where the vectors of a patch lie, from its place: vector v begins `of[v]` entries behind it.
struct Steps {
  const int64_t* of;
  int64_t count;
};

// patch_dots: sums[i] += sum over v and lanes of left[v][lane] * right[places[i] + steps.of[v] + lane]
//
// patch_sums: to[places[i] + steps.of[v] + lane] += sum over terms of factors[i][term] *
// patches[term][v][lane], one place after another; terms: 1 or 2.

// Columns of a panel; vleak/native/panel_product.py has the same number.
constexpr int64_t kPanel = 64;

// Vectors of sums of a row that are accumulated together: enough to hide the latency of an addition.
constexpr int64_t kRowVectors = 8;

template <typename T>
VLEAK_INLINE int64_t row_entries(const TileLimits& limits) {
  return kPanel < kRowVectors * limits.lanes ? kPanel : kRowVectors * limits.lanes;
}

}  // namespace vleak
