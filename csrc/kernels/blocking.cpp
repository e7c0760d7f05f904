#include "kernels/blocking.h"

#include <algorithm>

namespace vleak {

std::vector<int64_t> cut_rows(int64_t count, int64_t most) {
  const int64_t blocks = divide_up(count, most),
                fours = round_up(divide_up(count, std::max<int64_t>(1, blocks)), 4);
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
  for (int64_t count = 1; count <= std::min(kMaxTileVectors, limits.sums); ++count) {
    const double row_blocks = divide_up(rows, most_rows(count, limits));
    const double vector_blocks = divide_up(vectors, count);
    const double height = rows / row_blocks, width = vectors / vector_blocks;
    // Half cycles per step: multiplications, loads (vector loads cross cache lines), latency.
    const double loads = height + 2.0 * width + 1.0;
    const double step = std::max({height * width, loads, 8.0}) + 0.15 * loads;
    const double time = row_blocks * vector_blocks * step;
    if (count == 1 || time < least) {
      best = count;
      least = time;
    }
  }
  return best;
}

}  // namespace vleak
