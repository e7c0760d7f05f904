#include "kernels/panel_product.h"

#include <algorithm>

#include "kernels/product_blocks.h"

namespace vleak {
namespace {

// Rows of a panel that are multiplied together: they and the next ones should fit into the first-level cache.
constexpr int64_t kPieceRows = 64;

// The nonzero entries of x, by pieces of kPieceRows columns, and row by row within a piece.
template <typename T>
class Terms {
 public:
  // Every entry is written, but only nonzero ones advance the count: no branch.
  Terms(const PanelPair<T>& pair, int64_t rows)
      : rows_(rows), terms_(scratch<Term<T>>(rows * pair.m.depth + 1)) {
    int64_t count = 0;
    begins_.reserve(rows * divide_up(pair.m.depth, kPieceRows) + 1);
    for (int64_t start = 0; start < pair.m.depth; start += kPieceRows) {
      const int64_t taken = std::min(kPieceRows, pair.m.depth - start);
      for (int64_t row = 0; row < rows; ++row) {
        begins_.push_back(count);
        const T* x = pair.x.data + row * pair.x.stride + start;
        for (int64_t k = 0; k < taken; ++k) {
          terms_[count] = {static_cast<int32_t>(k * kPanel), x[k]};
          count += x[k] != T(0);
        }
      }
    }
    begins_.push_back(count);
  }

  int64_t count() const { return begins_.back(); }

  // The terms of one row and piece.
  const Term<T>* begin(int64_t piece, int64_t row) const {
    return terms_.get() + begins_[piece * rows_ + row];
  }
  int64_t size(int64_t piece, int64_t row) const {
    return begins_[piece * rows_ + row + 1] - begins_[piece * rows_ + row];
  }

 private:
  int64_t rows_;
  std::unique_ptr<Term<T>[]> terms_;
  std::vector<int64_t> begins_;
};

// sums += x m for one panel of m, by the nonzero terms of x.
template <typename T>
void add_terms(const Terms<T>& terms, const Panels<T>& m, int64_t panel, int64_t rows, bool fresh,
               T* sums /* [rows, kPanel] */) {
  const int64_t width = row_entries<T>(cpu_kernels<T>().tile_limits());
  const auto run = cpu_kernels<T>().row_product;
  for (int64_t start = 0, piece = 0; start < m.depth; start += kPieceRows, ++piece, fresh = false) {
    const int64_t ahead = std::min(kPieceRows, m.depth - start - kPieceRows) * kPanel;
    const int64_t share = ahead > 0 ? divide_up(ahead, rows * (kPanel / width)) : 0;
    const T* next = m.at(panel, start + kPieceRows);
    for (int64_t column = 0; column < kPanel; column += width) {
      for (int64_t row = 0; row < rows; ++row, next += share) {
        run({terms.begin(piece, row), terms.size(piece, row), m.at(panel, start) + column,
             sums + row * kPanel + column, fresh, next, share});
      }
    }
  }
}

// Above this share of nonzero entries, dense blocks are faster.
constexpr double kMostTerms = 0.7;

// y = sum over pairs of x m
template <typename T>
void plain_products(const std::vector<PanelPair<T>>& pairs, int64_t rows, int64_t columns, T* y) {
  int64_t depth = 0, count = 0;
  std::vector<Terms<T>> terms;
  for (const PanelPair<T>& pair : pairs) {
    terms.emplace_back(pair, rows);
    depth += pair.m.depth;
    count += terms.back().count();
  }
  const bool by_terms = count <= kMostTerms * rows * depth;
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const auto add = [&](int64_t panel, size_t i, T* sums) {
    const PanelPair<T>& pair = pairs[i];
    if (by_terms) return add_terms(terms[i], pair.m, panel, rows, i == 0, sums);
    const ProductPlan plan = plan_product(rows, pair.m.depth, kPanel / limits.lanes, false, limits);
    multiply<T>(plan, pair.x, {pair.m.at(panel, 0), kPanel}, 0, plan.larges(), i == 0, {sums, kPanel});
  };
  const int64_t panels = divide_up(columns, kPanel);
  parallel_for(panels, grain_of(kSumGrain, count * kPanel), [&](int64_t begin, int64_t end) {
    // Not accumulated in y, where the rows of one panel lie far apart.
    const auto sums = scratch<T>(rows * kPanel);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (size_t i = 0; i < pairs.size(); ++i) add(panel, i, sums.get());
      const int64_t first = panel * kPanel, width = std::min(kPanel, columns - first);
      for (int64_t row = 0; row < rows; ++row)
        std::copy_n(sums.get() + row * kPanel, width, y + row * columns + first);
    }
  });
}

// y = sum over pairs of x m^T, computed as (m x^T)^T
template <typename T>
void transposed_products(const std::vector<PanelPair<T>>& pairs, int64_t rows, int64_t columns, T* y) {
  const int64_t panels = divide_up(columns, kPanel);
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t depth = pairs[0].m.depth, vectors = divide_up(rows, limits.lanes);
  const int64_t padded = vectors * limits.lanes, entries = panels * kPanel * padded;
  const auto transposed = scratch<T>(entries * pairs.size()), sums = scratch<T>(depth * padded);
  std::fill_n(transposed.get(), entries * pairs.size(), T(0));
  for (size_t i = 0; i < pairs.size(); ++i)
    transpose_parallel<T>(pairs[i].x, rows, columns, 16, transposed.get() + i * entries, padded);
  const ProductPlan plan = plan_product(depth, kPanel, vectors, true, limits);
  const int64_t work = divide_up(depth * entries * static_cast<int64_t>(pairs.size()), plan.larges());
  parallel_for(plan.larges(), grain_of(kSumGrain, work), [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Matrix<const T> x = {transposed.get() + i * entries + panel * kPanel * padded, padded};
        multiply<T>(plan, {pairs[i].m.at(panel, 0), kPanel}, x, begin, end, i == 0 && panel == 0,
                    {sums.get(), padded});
      }
    }
  });
  transpose_parallel<T>({sums.get(), padded}, depth, rows, 4, y, depth);
}

}  // namespace

template <typename T>
void panel_product(std::vector<PanelPair<T>> pairs, int64_t rows, int64_t columns, bool transposed, T* y) {
  if (transposed) {
    if (columns > 0) return transposed_products(pairs, rows, columns, y);
    std::fill_n(y, rows * pairs[0].m.depth, T(0));
    return;
  }
  std::erase_if(pairs, [](const PanelPair<T>& pair) { return pair.m.depth == 0; });
  if (!pairs.empty()) return plain_products(pairs, rows, columns, y);
  std::fill_n(y, rows * columns, T(0));
}

template void panel_product<float>(std::vector<PanelPair<float>>, int64_t, int64_t, bool, float*);
template void panel_product<double>(std::vector<PanelPair<double>>, int64_t, int64_t, bool, double*);

}  // namespace vleak
