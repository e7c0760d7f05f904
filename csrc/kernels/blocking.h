// How sums are cut into the register blocks of tile.h.
#pragma once

#include <vector>

#include "kernels/tile.h"

namespace vleak {

// Cuts `count` rows into nearly equal blocks of at most `most` rows, preferably of a multiple of four rows
// where that takes no more blocks. Returns the first row of each block, and `count`.
std::vector<int64_t> cut_rows(int64_t count, int64_t most);

// The number of vectors that a tile should hold for this many rows and vectors: the one of least estimated
// time.
int64_t best_vectors(int64_t rows, int64_t vectors, const TileLimits& limits);

// The most rows that a block of this many vectors may have.
VLEAK_INLINE int64_t most_rows(int64_t vectors, const TileLimits& limits) {
  const int64_t rows = limits.sums / vectors;
  return rows < limits.most_rows ? rows : limits.most_rows;
}

}  // namespace vleak
