// CPU implementations of the products that vleak/bilinear.py declares.
#include <algorithm>

#include "bindings/bilinear.h"
#include "kernels/conv.h"
#include "kernels/dispatch.h"
#include "kernels/transpose.h"

namespace vleak {
namespace {

// ---------------------------------------------------------------------------------------------------------
// product

// A matrix whose rows are contiguous each.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// What of both operands is worked on at once shall stay in the second cache.
constexpr int64_t kCacheBytes = 1 << 18;
constexpr int64_t kLeastDepth = 128;

// How left [rows, depth] times right [depth, vectors of columns] is cut. One operand may be large: it is read
// once, piece by piece, for the parts of the other, which stay in the cache.
struct ProductPlan {
  int64_t lanes, vectors, held, depth, piece;
  bool left_is_large;
  std::vector<int64_t> blocks;

  int64_t row_blocks() const { return static_cast<int64_t>(blocks.size()) - 1; }
  int64_t panels() const { return divide_up(vectors, held); }
  int64_t larges() const { return left_is_large ? row_blocks() : panels(); }
  int64_t smalls() const { return left_is_large ? panels() : row_blocks(); }
};

ProductPlan plan_product(int64_t rows, int64_t depth, int64_t vectors, bool left_is_large,
                         const TileLimits& limits) {
  const int64_t held = std::min(best_vectors(rows, vectors, limits), kMaxBlockVectors);
  const int64_t block = most_rows(held, limits), width = held * limits.lanes;
  const int64_t entries = left_is_large ? vectors * limits.lanes + 2 * block : rows + 2 * width;
  const int64_t most = std::max(kLeastDepth, kCacheBytes / limits.entry_bytes / entries);
  const int64_t even = divide_up(depth, divide_up(depth, most));
  return {limits.lanes, vectors, held, depth, divide_up(even, 16) * 16, left_is_large, cut_rows(rows, block)};
}

// The large operand's next part, shared out among the parts of the other that are worked on meanwhile.
template <typename T>
class Next {
 public:
  // For the entries [start, start + count) of the depth.
  Next(const ProductPlan& plan, Rows<const T> large, int64_t start, int64_t count)
      : plan_(plan), large_(large), start_(start), count_(count) {
    constexpr int64_t kLine = kLineBytes / sizeof(T);
    const int64_t rows = plan.left_is_large ? plan.blocks[1] - plan.blocks[0] : count;
    const int64_t entries = plan.left_is_large ? count : plan.held * plan.lanes;
    rows_ = divide_up(rows, plan.smalls());
    lines_a_step_ = divide_up(rows_ * divide_up(entries, kLine), divide_up(count, kLine));
  }

  // Divides nothing: that takes as long as a row of sums.
  Ahead<T> ahead(int64_t next, int64_t share) const {
    const bool left = plan_.left_is_large;
    const int64_t first = left ? plan_.blocks[next] : 0;
    const int64_t rows = left ? plan_.blocks[next + 1] - first : count_;
    const int64_t from = std::min(share * rows_, rows), to = std::min(from + rows_, rows);
    if (left)
      return {large_.data + (first + from) * large_.stride + start_, large_.stride, to - from, count_,
              lines_a_step_};
    const int64_t vectors = std::min(plan_.held, plan_.vectors - next * plan_.held);
    return {large_.data + (start_ + from) * large_.stride + next * plan_.held * plan_.lanes, large_.stride,
            to - from, vectors * plan_.lanes, lines_a_step_};
  }

 private:
  const ProductPlan& plan_;
  Rows<const T> large_;
  int64_t start_, count_, rows_, lines_a_step_;
};

// sums += left right, for the parts [begin, end) of the large operand
template <typename T>
void multiply(const ProductPlan& plan, Rows<const T> left, Rows<const T> right, int64_t begin, int64_t end,
              bool fresh, Rows<T> sums) {
  const int64_t smalls = plan.smalls();
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  for (int64_t start = 0; start < plan.depth; start += plan.piece, fresh = false) {
    const int64_t count = std::min(plan.piece, plan.depth - start);
    const Next<T> next(plan, plan.left_is_large ? left : right, start, count);
    for (int64_t large = begin; large < end; ++large) {
      for (int64_t small = 0; small < smalls; ++small) {
        const int64_t block = plan.left_is_large ? large : small, panel = plan.left_is_large ? small : large;
        const int64_t row = plan.blocks[block], column = panel * plan.held * plan.lanes;
        const auto run = kernels.block_product(plan.blocks[block + 1] - row,
                                               std::min(plan.held, plan.vectors - panel * plan.held));
        run({left.data + row * left.stride + start, left.stride, right.data + start * right.stride + column,
             right.stride, count, sums.data + row * sums.stride + column, sums.stride, fresh,
             large + 1 < end ? next.ahead(large + 1, small) : Ahead<T>{}});
      }
    }
  }
}

template <typename T>
void multiply_all(const ProductPlan& plan, Rows<const T> left, Rows<const T> right, bool fresh,
                  Rows<T> sums) {
  const int64_t work = plan.blocks.back() * plan.depth * plan.vectors * plan.lanes;
  const int64_t larges = plan.larges();
  parallel_for(0, larges, grain(kSumGrain, work / std::max<int64_t>(1, larges)),
               [&](int64_t begin, int64_t end) { multiply<T>(plan, left, right, begin, end, fresh, sums); });
}

// to[i * to_stride + j] = from[j, i] for j < rows, i < length
//
// steps: entries of a row that are taken at once. Few where to_stride is large, and often a power of two:
// lines of the cache are then written in full before they push out each other.
template <typename T>
void transpose_all(Rows<const T> from, int64_t rows, int64_t length, int64_t steps, T* to,
                   int64_t to_stride) {
  constexpr int64_t kTogether = 16;
  parallel_for(
      0, divide_up(rows, kTogether), grain(kCopyGrain, kTogether * length), [&](int64_t begin, int64_t end) {
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

// One of the pairs that are multiplied and added up: rows x, and m as it lies or its transpose.
template <typename T>
struct Factors {
  Rows<const T> x, m;
  int64_t depth;
};

// y += x m, where the rows of m are read as vectors.
template <typename T>
void add_product(const Factors<T>& pair, int64_t rows, int64_t columns, bool fresh, T* y) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t vectors = columns / limits.lanes, whole = vectors * limits.lanes, rest = columns - whole;
  if (vectors > 0) {
    const ProductPlan plan = plan_product(rows, pair.depth, vectors, false, limits);
    multiply_all<T>(plan, pair.x, pair.m, fresh, {y, columns});
  }
  if (rest == 0) return;
  // The last columns are no whole vector: both they and their sums are copied to where they are one.
  const auto last = scratch<T>(pair.depth * limits.lanes), sums = scratch<T>(rows * limits.lanes);
  std::fill_n(last.get(), pair.depth * limits.lanes, T(0));
  std::fill_n(sums.get(), rows * limits.lanes, T(0));
  for (int64_t k = 0; k < pair.depth; ++k)
    std::copy_n(pair.m.data + k * pair.m.stride + whole, rest, last.get() + k * limits.lanes);
  for (int64_t row = 0; row < rows && !fresh; ++row)
    std::copy_n(y + row * columns + whole, rest, sums.get() + row * limits.lanes);
  const ProductPlan plan = plan_product(rows, pair.depth, 1, true, limits);
  multiply_all<T>(plan, pair.x, {last.get(), limits.lanes}, false, {sums.get(), limits.lanes});
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(sums.get() + row * limits.lanes, rest, y + row * columns + whole);
}

// y = sum over pairs of x m^T, as (m x^T)^T: the rows of m are read entry by entry, which packs nothing.
template <typename T>
void transposed_products(const std::vector<Factors<T>>& pairs, int64_t rows, int64_t columns, T* y) {
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t vectors = divide_up(rows, limits.lanes), padded = vectors * limits.lanes;
  const auto sums = scratch<T>(columns * padded);
  bool fresh = true;
  for (const Factors<T>& pair : pairs) {
    const int64_t piece = plan_product(columns, pair.depth, vectors, true, limits).piece;
    const auto turned = scratch<T>(piece * padded);
    if (padded > rows) std::fill_n(turned.get(), piece * padded, T(0));
    for (int64_t start = 0; start < pair.depth; start += piece, fresh = false) {
      const int64_t count = std::min(piece, pair.depth - start);
      transpose_all<T>({pair.x.data + start, pair.x.stride}, rows, count, 16, turned.get(), padded);
      const ProductPlan plan = plan_product(columns, count, vectors, true, limits);
      multiply_all<T>(plan, {pair.m.data + start, pair.m.stride}, {turned.get(), padded}, fresh,
                      {sums.get(), padded});
    }
  }
  transpose_all<T>({sums.get(), padded}, columns, rows, 4, y, columns);
}

bool has_dense_rows(const Tensor& matrix) { return matrix.stride(1) == 1 || matrix.size(1) == 1; }
bool has_dense_columns(const Tensor& matrix) { return matrix.stride(0) == 1 || matrix.size(0) == 1; }

void check_products(const std::vector<Tensor>& xs, const std::vector<Tensor>& ms) {
  check(!xs.empty() && xs.size() == ms.size(), "lists differ in length");
  for (size_t i = 0; i < xs.size(); ++i) {
    check_alike(xs[i], xs[0]);
    check_alike(ms[i], xs[0]);
    check(xs[i].dim() == 2 && ms[i].dim() == 2 && xs[i].size(1) == ms[i].size(0) &&
              xs[i].size(0) == xs[0].size(0) && ms[i].size(1) == ms[0].size(1),
          "pairs do not match");
  }
}

Tensor product(std::vector<Tensor> xs, std::vector<Tensor> ms) {
  check_products(xs, ms);
  const int64_t rows = xs[0].size(0), columns = ms[0].size(1);
  const Tensor result = new_contiguous(xs[0], {rows, columns});
  if (result.numel() == 0) return result;
  with_type(xs[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<Factors<T>> plain, turned;
    for (size_t i = 0; i < xs.size(); ++i) {
      Tensor &x = xs[i], &m = ms[i];
      if (x.size(1) == 0) continue;
      if (!has_dense_rows(x)) x = dense(x);
      const bool transposed = !has_dense_rows(m) && has_dense_columns(m);
      if (!transposed && !has_dense_rows(m)) m = dense(m);
      (transposed ? turned : plain)
          .push_back({{x.const_data_ptr<T>(), x.stride(0)},
                      {m.const_data_ptr<T>(), m.stride(transposed ? 1 : 0)},
                      x.size(1)});
    }
    T* y = result.mutable_data_ptr<T>();
    if (!turned.empty()) transposed_products(turned, rows, columns, y);
    bool fresh = turned.empty();
    if (fresh && plain.empty()) std::fill_n(y, rows * columns, T(0));
    for (const Factors<T>& pair : plain) {
      add_product(pair, rows, columns, fresh, y);
      fresh = false;
    }
  });
  return result;
}

// ---------------------------------------------------------------------------------------------------------
// panel_product

// A matrix [depth, columns] cut into panels of kPanel columns, [panels, depth, kPanel]: whichever way it is
// multiplied, what is read at once lies side by side, in the order in which it is read.
template <typename T>
struct Panels {
  const T* data;
  int64_t depth;

  const T* at(int64_t panel, int64_t row) const { return data + (panel * depth + row) * kPanel; }
};

template <typename T>
struct PanelPair {
  Rows<const T> x;
  Panels<T> m;
};

template <typename T>
using PanelPairs = std::vector<PanelPair<T>>;

// Rows of a panel that are multiplied together: they and the next ones are to fit into the first cache.
constexpr int64_t kPieceRows = 64;

// What of x is not zero, for kPieceRows columns at a time and row by row.
template <typename T>
class Terms {
 public:
  // What is written last may be zero, and not counted.
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

  // Of a row, for the columns [piece * kPieceRows, ...).
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

// sums += x m for one panel of m, by the terms of x.
template <typename T>
void add_terms(const Terms<T>& terms, const Panels<T>& m, int64_t panel, int64_t rows, bool fresh,
               T* sums /* [rows, kPanel] */) {
  const int64_t width = row_entries<T>(cpu_kernels<T>().tile_limits());
  const auto run = cpu_kernels<T>().row_product();
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

// Above this share of entries that are not zero, blocks of all of them are faster.
constexpr double kMostTerms = 0.7;

// y = sum over pairs of x m
template <typename T>
void panel_products(const PanelPairs<T>& pairs, int64_t rows, int64_t columns, T* y) {
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
  parallel_for(0, panels, grain(kSumGrain, count * kPanel), [&](int64_t begin, int64_t end) {
    // Not in y, where what is added to at once would lie far apart.
    const auto sums = scratch<T>(rows * kPanel);
    for (int64_t panel = begin; panel < end; ++panel) {
      for (size_t i = 0; i < pairs.size(); ++i) add(panel, i, sums.get());
      const int64_t first = panel * kPanel, width = std::min(kPanel, columns - first);
      for (int64_t row = 0; row < rows; ++row)
        std::copy_n(sums.get() + row * kPanel, width, y + row * columns + first);
    }
  });
}

// y = sum over pairs of x m^T, as (m x^T)^T
template <typename T>
void turned_panel_products(const PanelPairs<T>& pairs, int64_t rows, int64_t columns, T* y) {
  const int64_t panels = divide_up(columns, kPanel);
  const TileLimits limits = cpu_kernels<T>().tile_limits();
  const int64_t depth = pairs[0].m.depth, vectors = divide_up(rows, limits.lanes);
  const int64_t padded = vectors * limits.lanes, each = panels * kPanel * padded;
  const auto turned = scratch<T>(each * pairs.size()), sums = scratch<T>(depth * padded);
  std::fill_n(turned.get(), each * pairs.size(), T(0));
  for (size_t i = 0; i < pairs.size(); ++i)
    transpose_all<T>(pairs[i].x, rows, columns, 16, turned.get() + i * each, padded);
  const ProductPlan plan = plan_product(depth, kPanel, vectors, true, limits);
  const int64_t work = divide_up(depth * each * static_cast<int64_t>(pairs.size()), plan.larges());
  parallel_for(0, plan.larges(), grain(kSumGrain, work), [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Rows<const T> x = {turned.get() + i * each + panel * kPanel * padded, padded};
        multiply<T>(plan, {pairs[i].m.at(panel, 0), kPanel}, x, begin, end, i == 0 && panel == 0,
                    {sums.get(), padded});
      }
    }
  });
  transpose_all<T>({sums.get(), padded}, depth, rows, 4, y, depth);
}

void check_panels(const std::vector<Tensor>& xs, const std::vector<Tensor>& panels, int64_t columns,
                  bool turned) {
  check(!xs.empty() && xs.size() == panels.size() && columns >= 0, "lists differ in length");
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor &x = xs[i], &m = panels[i];
    check_alike(x, xs[0]);
    check_alike(m, xs[0]);
    check(x.dim() == 2 && m.dim() == 3 && m.size(2) == kPanel && m.size(0) == divide_up(columns, kPanel) &&
              x.size(0) == xs[0].size(0) && x.size(1) == (turned ? columns : m.size(1)) &&
              (!turned || m.size(1) == panels[0].size(1)),
          "pairs do not match");
  }
}

Tensor panel_product(std::vector<Tensor> xs, std::vector<Tensor> panels, int64_t columns, bool turned) {
  check_panels(xs, panels, columns, turned);
  const int64_t rows = xs[0].size(0);
  const Tensor result = new_contiguous(xs[0], {rows, turned ? panels[0].size(1) : columns});
  if (result.numel() == 0) return result;
  with_type(xs[0], [&](auto zero) {
    using T = decltype(zero);
    T* y = result.mutable_data_ptr<T>();
    PanelPairs<T> pairs;
    for (size_t i = 0; i < xs.size(); ++i) {
      if (!has_dense_rows(xs[i])) xs[i] = dense(xs[i]);
      panels[i] = dense(panels[i]);
      const Rows<const T> x = {xs[i].const_data_ptr<T>(), xs[i].stride(0)};
      if (xs[i].size(1) > 0) pairs.push_back({x, {panels[i].const_data_ptr<T>(), panels[i].size(1)}});
    }
    if (pairs.empty()) {
      std::fill_n(y, result.numel(), T(0));
    } else if (turned) {
      turned_panel_products(pairs, rows, columns, y);
    } else {
      panel_products<T>(pairs, rows, columns, y);
    }
  });
  return result;
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("product", TORCH_BOX(&vleak::product));
  library.impl("panel_product", TORCH_BOX(&vleak::panel_product));
}
