// Matrix products by register blocks, with one operand streamed from memory: what product.cpp and
// panel_product.cpp share.
#pragma once

#include <vector>

#include "kernels/blocking.h"
#include "kernels/dispatch.h"
#include "kernels/parallel.h"
#include "kernels/product.h"
#include "kernels/transpose.h"

namespace vleak {

// How left [rows, depth] times right [depth, vectors of columns] is cut. One operand may be large: it is read
// once, piece by piece, for all parts of the other operand, which stay in the cache.
struct ProductPlan {
  int64_t lanes, vectors, block_vectors, depth, piece;
  bool left_is_large;
  std::vector<int64_t> blocks;

  int64_t row_blocks() const { return static_cast<int64_t>(blocks.size()) - 1; }
  int64_t panels() const { return divide_up(vectors, block_vectors); }
  int64_t larges() const { return left_is_large ? row_blocks() : panels(); }
  int64_t smalls() const { return left_is_large ? panels() : row_blocks(); }
};

ProductPlan plan_product(int64_t rows, int64_t depth, int64_t vectors, bool left_is_large,
                         const TileLimits& limits);

// What to prefetch: the next part of the large operand, a share of it during each part of the small operand.
template <typename T>
class Prefetch {
 public:
  // For the entries [start, start + count) of the depth.
  Prefetch(const ProductPlan& plan, Matrix<const T> large, int64_t start, int64_t count)
      : plan_(plan), large_(large), start_(start), count_(count) {
    constexpr int64_t kLine = kLineBytes / sizeof(T);
    const int64_t rows = plan.left_is_large ? plan.blocks[1] - plan.blocks[0] : count;
    const int64_t entries = plan.left_is_large ? count : plan.block_vectors * plan.lanes;
    rows_ = divide_up(rows, plan.smalls());
    lines_a_step_ = divide_up(rows_ * divide_up(entries, kLine), divide_up(count, kLine));
  }

  // Without divisions, which would take as long as a row of sums.
  Ahead<T> ahead(int64_t next, int64_t share) const {
    const bool left = plan_.left_is_large;
    const int64_t first = left ? plan_.blocks[next] : 0;
    const int64_t rows = left ? plan_.blocks[next + 1] - first : count_;
    const int64_t from = std::min(share * rows_, rows), to = std::min(from + rows_, rows);
    if (left)
      return {large_.data + (first + from) * large_.stride + start_, large_.stride, to - from, count_,
              lines_a_step_};
    const int64_t vectors = std::min(plan_.block_vectors, plan_.vectors - next * plan_.block_vectors);
    return {large_.data + (start_ + from) * large_.stride + next * plan_.block_vectors * plan_.lanes,
            large_.stride, to - from, vectors * plan_.lanes, lines_a_step_};
  }

 private:
  const ProductPlan& plan_;
  Matrix<const T> large_;
  int64_t start_, count_, rows_, lines_a_step_;
};

// sums += left right, for the parts [begin, end) of the large operand. Where fresh is set, sums begin at 0.
template <typename T>
void multiply(const ProductPlan& plan, Matrix<const T> left, Matrix<const T> right, int64_t begin,
              int64_t end, bool fresh, Matrix<T> sums) {
  const int64_t smalls = plan.smalls();
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  for (int64_t start = 0; start < plan.depth; start += plan.piece, fresh = false) {
    const int64_t count = std::min(plan.piece, plan.depth - start);
    const Prefetch<T> next(plan, plan.left_is_large ? left : right, start, count);
    for (int64_t large = begin; large < end; ++large) {
      for (int64_t small = 0; small < smalls; ++small) {
        const int64_t block = plan.left_is_large ? large : small, panel = plan.left_is_large ? small : large;
        const int64_t row = plan.blocks[block], column = panel * plan.block_vectors * plan.lanes;
        const auto run =
            kernels.block_product(plan.blocks[block + 1] - row,
                                  std::min(plan.block_vectors, plan.vectors - panel * plan.block_vectors));
        run({left.data + row * left.stride + start, left.stride, right.data + start * right.stride + column,
             right.stride, count, sums.data + row * sums.stride + column, sums.stride, fresh,
             large + 1 < end ? next.ahead(large + 1, small) : Ahead<T>{}});
      }
    }
  }
}

template <typename T>
void multiply_parallel(const ProductPlan& plan, Matrix<const T> left, Matrix<const T> right, bool fresh,
                       Matrix<T> sums) {
  const int64_t work = plan.blocks.back() * plan.depth * plan.vectors * plan.lanes;
  const int64_t larges = plan.larges();
  parallel_for(larges, grain_of(kSumGrain, work / std::max<int64_t>(1, larges)),
               [&](int64_t begin, int64_t end) { multiply<T>(plan, left, right, begin, end, fresh, sums); });
}

// to[i * to_stride + j] = from[j, i] for j < rows, i < length
//
// steps: entries of a row that are copied at once. Few where to_stride is large (often a power of two): cache
// lines are then written in full before they evict one another.
template <typename T>
void transpose_parallel(Matrix<const T> from, int64_t rows, int64_t length, int64_t steps, T* to,
                        int64_t to_stride) {
  constexpr int64_t kTogether = 16;
  parallel_for(
      divide_up(rows, kTogether), grain_of(kCopyGrain, kTogether * length), [&](int64_t begin, int64_t end) {
        const T* lines[kTogether];
        for (int64_t row = begin * kTogether; row < std::min(rows, end * kTogether); row += kTogether) {
          const int64_t count = std::min(kTogether, rows - row);
          for (int64_t at = 0; at < length; at += steps) {
            for (int64_t i = 0; i < count; ++i) lines[i] = from.data + (row + i) * from.stride + at;
            transpose(lines, count, std::min(steps, length - at), to + at * to_stride + row, to_stride);
          }
        }
      });
}

}  // namespace vleak
