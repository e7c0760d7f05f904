#include "kernels/product.h"

#include <algorithm>

#include "kernels/product_blocks.h"

namespace vleak {

ProductPlan plan_product(int64_t rows, int64_t depth, int64_t vectors, bool left_is_large,
                         const TileLimits& limits) {
  // The parts of both operands that are in use should fit into the second-level cache.
  constexpr int64_t kCacheBytes = 1 << 18, kLeastDepth = 128;
  const int64_t block_vectors = std::min(best_vectors(rows, vectors, limits), kMaxBlockVectors);
  const int64_t block = most_rows(block_vectors, limits), width = block_vectors * limits.lanes;
  const int64_t entries = left_is_large ? vectors * limits.lanes + 2 * block : rows + 2 * width;
  const int64_t most = std::max(kLeastDepth, kCacheBytes / limits.entry_bytes / entries);
  const int64_t even = divide_up(depth, divide_up(depth, most));
  return {limits.lanes,       vectors,       block_vectors,        depth,
          round_up(even, 16), left_is_large, cut_rows(rows, block)};
}

namespace {

// y += x m, where the rows of m are read as vectors. Where fresh is set, y is not read.
template <typename T>
void add_product(const ProductPair<T>& pair, int64_t rows, int64_t columns, bool fresh, T* y) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t vectors = columns / limits.lanes, full = vectors * limits.lanes, rest = columns - full;
  if (vectors > 0) {
    const ProductPlan plan = plan_product(rows, pair.depth, vectors, false, limits);
    multiply_parallel<T>(plan, pair.x, pair.m, fresh, {y, columns});
  }
  if (rest == 0) return;
  // The last columns do not fill a vector: they and their sums are copied to padded memory.
  const auto last = scratch<T>(pair.depth * limits.lanes), sums = scratch<T>(rows * limits.lanes);
  std::fill_n(last.get(), pair.depth * limits.lanes, T(0));
  std::fill_n(sums.get(), rows * limits.lanes, T(0));
  for (int64_t k = 0; k < pair.depth; ++k)
    std::copy_n(pair.m.data + k * pair.m.stride + full, rest, last.get() + k * limits.lanes);
  for (int64_t row = 0; row < rows && !fresh; ++row)
    std::copy_n(y + row * columns + full, rest, sums.get() + row * limits.lanes);
  const ProductPlan plan = plan_product(rows, pair.depth, 1, true, limits);
  multiply_parallel<T>(plan, pair.x, {last.get(), limits.lanes}, false, {sums.get(), limits.lanes});
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(sums.get() + row * limits.lanes, rest, y + row * columns + full);
}

// y = sum over pairs of x m^T, computed as (m x^T)^T: the rows of m are read entry by entry, nothing is
// packed.
template <typename T>
void transposed_products(const std::vector<ProductPair<T>>& pairs, int64_t rows, int64_t columns, T* y) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t padded = round_up(rows, limits.lanes), vectors = padded / limits.lanes;
  const auto sums = scratch<T>(columns * padded);
  bool fresh = true;
  for (const ProductPair<T>& pair : pairs) {
    const int64_t piece = plan_product(columns, pair.depth, vectors, true, limits).piece;
    const auto turned = scratch<T>(piece * padded);
    if (padded > rows) std::fill_n(turned.get(), piece * padded, T(0));
    for (int64_t start = 0; start < pair.depth; start += piece, fresh = false) {
      const int64_t count = std::min(piece, pair.depth - start);
      transpose_parallel<T>({pair.x.data + start, pair.x.stride}, rows, count, 16, turned.get(), padded);
      const ProductPlan plan = plan_product(columns, count, vectors, true, limits);
      multiply_parallel<T>(plan, {pair.m.data + start, pair.m.stride}, {turned.get(), padded}, fresh,
                           {sums.get(), padded});
    }
  }
  transpose_parallel<T>({sums.get(), padded}, columns, rows, 4, y, columns);
}

}  // namespace

template <typename T>
void product(const std::vector<ProductPair<T>>& pairs, int64_t rows, int64_t columns, T* y) {
  std::vector<ProductPair<T>> plain, transposed;
  for (const ProductPair<T>& pair : pairs) (pair.transposed ? transposed : plain).push_back(pair);
  if (!transposed.empty()) transposed_products(transposed, rows, columns, y);
  bool fresh = transposed.empty();
  if (pairs.empty()) std::fill_n(y, rows * columns, T(0));
  for (const ProductPair<T>& pair : plain) {
    add_product(pair, rows, columns, fresh, y);
    fresh = false;
  }
}

template void product<float>(const std::vector<ProductPair<float>>&, int64_t, int64_t, float*);
template void product<double>(const std::vector<ProductPair<double>>&, int64_t, int64_t, double*);

}  // namespace vleak
