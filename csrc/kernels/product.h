// The inner loops of all convolutions and products: a block of sums held in registers.
#pragma once

#include "kernels/common.h"

namespace vleak {

// sums[row * row_stride + at[vector] + lane] +=
//     sum over k of left[k][row] * right[offsets[k] + bases[vector] + lane]
//
// Where start is given, sums are written only and begin at start[row].
// left is packed, right is read wherever its entries lie, so no operand is ever unfolded. Every sum is added
// up in the order of k, whatever the shape of the block.
template <typename T>
using Tile = void (*)(const T* left /* [count, rows] */, const T* right, const int64_t* offsets /* [count] */,
                      int64_t count, const int64_t* bases /* [vectors] */, const T* start /* [rows] */,
                      T* sums, int64_t row_stride, const int64_t* at /* [vectors] */);

// A block of rows x vectors fits if rows <= most_rows, rows * vectors <= sums and vectors <= kMaxTileVectors.
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

// Rows to be read soon: asked for one line of the cache after the other while something else is computed.
template <typename T>
struct Ahead {
  const T* first;
  int64_t stride;
  int64_t rows;
  int64_t entries;
};

// sums[row * sums_stride + i] += sum over k of left[row * left_stride + k] * right[k * right_stride + i]
//
// Nothing is packed. Where fresh is set, sums are written only and begin at 0. Every sum is added up in the
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

// For a fixed number of rows and vectors, which fit as those of a tile do; vectors <= kMaxBlockVectors.
template <typename T>
using BlockProduct = void (*)(const Block<T>& block);

constexpr int64_t kMaxBlockVectors = 3;

}  // namespace vleak
