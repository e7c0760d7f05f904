#include "kernels/dispatch.h"
#include "kernels/vector.h"

namespace vleak::VLEAK_VARIANT {
namespace {

// How many vectors of sums fit into the registers beside the operands.
#if defined(__AVX512F__)
constexpr int kSums = 24, kMostRows = 12;
#else
constexpr int kSums = 12, kMostRows = 6;
#endif
static_assert(kSums * kBytes <= kMaxTileBytes && kMostRows <= kMaxTileRows);

// The operand with fewer entries stays in registers: otherwise one of the sums would not fit.
template <typename T, int kRows, int kVectors>
VLEAK_INLINE void add_products(const T* left, const T* const* from, int64_t offset,
                               typename Wide<T>::Vector (&sum)[kRows][kVectors]) {
  using Vector = typename Wide<T>::Vector;
  if constexpr (kRows < kVectors) {
    Vector factors[kRows];
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) factors[row] = left[row] - Vector{};
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Vector entries = load(from[v] + offset);
#if defined(__x86_64__)
      // Without this, GCC loads them again for every product.
      asm("" : "+v"(entries));
#endif
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) sum[row][v] += factors[row] * entries;
    }
  } else {
    Vector entries[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) entries[v] = load(from[v] + offset);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[row][v] += left[row] * entries[v];
    }
  }
}

template <typename T, int kRows, int kVectors>
void run_tile(const T* left, const T* right, const int64_t* offsets, int64_t count, const int64_t* bases,
              const T* start, T* sums, int64_t row_stride, const int64_t* at) {
  using Vector = typename Wide<T>::Vector;
  const T* from[kVectors];
  Vector sum[kRows][kVectors];
  for (int v = 0; v < kVectors; ++v) from[v] = right + bases[v];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[row][v] = start ? start[row] - Vector{} : load(sums + row * row_stride + at[v]);
    }
  }
  for (int64_t k = 0; k < count; ++k, left += kRows) {
    add_products<T, kRows, kVectors>(left, from, offsets[k], sum);
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(sum[row][v], sums + row * row_stride + at[v]);
  }
}

// Sum of lanes, halves by halves.
template <typename T, int kCount>
VLEAK_INLINE T folded(const T* lanes) {
  if constexpr (kCount == 1) {
    return lanes[0];
  } else {
    typedef T Half __attribute__((vector_size(kCount / 2 * sizeof(T)), aligned(alignof(T)), may_alias));
    T half[kCount / 2];
    *reinterpret_cast<Half*>(half) =
        *reinterpret_cast<const Half*>(lanes) + *reinterpret_cast<const Half*>(lanes + kCount / 2);
    return folded<T, kCount / 2>(half);
  }
}

template <typename T, int kPlaces>
void add_dots(const T* left, const T* right, const int64_t* places, const Steps& steps, T* sums) {
  using Vector = typename Wide<T>::Vector;
  Vector sum[kPlaces] = {};
  for (int64_t v = 0; v < steps.count; ++v) {
    const Vector entries = load(left + v * Wide<T>::kLanes);
#pragma GCC unroll 9
    for (int at = 0; at < kPlaces; ++at) sum[at] += entries * load(right + places[at] + steps.of[v]);
  }
  for (int at = 0; at < kPlaces; ++at) {
    T lanes[Wide<T>::kLanes];
    store<T>(sum[at], lanes);
    sums[at] += folded<T, Wide<T>::kLanes>(lanes);
  }
}

template <typename T, int kTerms>
void add_patches(const T* factors, const int64_t* places, int64_t count, const T* const* patches,
                 const Steps& steps, T* to) {
  using Vector = typename Wide<T>::Vector;
  for (int64_t i = 0; i < count; ++i, factors += kTerms) {
    Vector factor[kTerms];
    for (int term = 0; term < kTerms; ++term) factor[term] = factors[term] - Vector{};
    for (int64_t v = 0; v < steps.count; ++v) {
      T* at = to + places[i] + steps.of[v];
      Vector sum = load(at);
#pragma GCC unroll 2
      for (int term = 0; term < kTerms; ++term) {
        sum += factor[term] * load(patches[term] + v * Wide<T>::kLanes);
      }
      store<T>(sum, at);
    }
  }
}

template <typename T, int kRows, int kVectors>
VLEAK_INLINE void add_row(const T* left, int64_t stride, const T* right,
                          typename Wide<T>::Vector (&sum)[kRows][kVectors]) {
  using Vector = typename Wide<T>::Vector;
  Vector entries[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) entries[v] = load(right + v * Wide<T>::kLanes);
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
    Vector factor = left[row * stride] - Vector{};
#if defined(__x86_64__)
    // Without this, GCC loads it again for every product.
    if constexpr (kVectors > 1) asm("" : "+v"(factor));
#endif
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[row][v] += factor * entries[v];
  }
}

template <typename T>
constexpr int64_t kLine = kLineBytes / sizeof(T);

// Prefetches rows, cache line by cache line.
template <typename T>
class Fetch {
 public:
  explicit Fetch(const Ahead<T>& ahead) : ahead_(ahead) {}

  void step() {
    for (int64_t i = 0; i < ahead_.lines_a_step && ahead_.rows > 0; ++i) {
      __builtin_prefetch(ahead_.first + at_);
      at_ += kLine<T>;
      if (at_ < ahead_.entries) continue;
      at_ = 0;
      ahead_.first += ahead_.stride;
      --ahead_.rows;
    }
  }

 private:
  Ahead<T> ahead_;
  int64_t at_ = 0;
};

template <typename T, int kRows, int kVectors>
void run_block(const Block<T>& block) {
  using Vector = typename Wide<T>::Vector;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[row][v] = block.fresh ? Vector{} : load(block.sums + row * block.sums_stride + v * Wide<T>::kLanes);
    }
  }
  const T *left = block.left, *right = block.right;
  const int64_t left_stride = block.left_stride, right_stride = block.right_stride;
  Fetch<T> next(block.next);
  for (int64_t start = 0; start < block.depth; start += kLine<T>) {
    next.step();
    const int64_t end = start + kLine<T> < block.depth ? start + kLine<T> : block.depth;
    for (int64_t k = start; k < end; ++k, ++left, right += right_stride) {
      add_row<T, kRows, kVectors>(left, left_stride, right, sum);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      store(sum[row][v], block.sums + row * block.sums_stride + v * Wide<T>::kLanes);
    }
  }
}

constexpr int most_vectors(int rows, int64_t most) {
  return kSums / rows < most ? kSums / rows : static_cast<int>(most);
}

// The two kinds of loops, and the one for a block shape.
template <typename T>
struct TileLoop {
  using Function = Tile<T>;
  static constexpr int64_t kMost = kMaxTileVectors;
  template <int kRows, int kVectors>
  static constexpr Function kOf = &run_tile<T, kRows, kVectors>;
};

template <typename T>
struct BlockLoop {
  using Function = BlockProduct<T>;
  static constexpr int64_t kMost = kMaxBlockVectors;
  template <int kRows, int kVectors>
  static constexpr Function kOf = &run_block<T, kRows, kVectors>;
};

// One function per block shape that fits, indexed by rows - 1 and vectors - 1.
template <typename Loop>
struct Shapes {
  typename Loop::Function of[kMostRows][Loop::kMost] = {};

  template <int kRows = kMostRows, int kVectors = most_vectors(kRows, Loop::kMost)>
  constexpr Shapes& fill() {
    of[kRows - 1][kVectors - 1] = Loop::template kOf<kRows, kVectors>;
    if constexpr (kVectors > 1)
      fill<kRows, kVectors - 1>();
    else if constexpr (kRows > 1)
      fill<kRows - 1>();
    return *this;
  }
};

}  // namespace

// The loop for a block of this shape, which must fit into the registers.
template <typename T>
Tile<T> tile(int64_t rows, int64_t vectors) {
  static constexpr auto kTiles = Shapes<TileLoop<T>>().fill();
  return kTiles.of[rows - 1][vectors - 1];
}

template <typename T>
void patch_dots(const T* left, const T* right, const int64_t* places, int64_t count, const Steps& steps,
                T* sums) {
  constexpr int64_t kMost = 9;
  static constexpr decltype(&add_dots<T, 1>) kDots[kMost] = {
      &add_dots<T, 1>, &add_dots<T, 2>, &add_dots<T, 3>, &add_dots<T, 4>, &add_dots<T, 5>,
      &add_dots<T, 6>, &add_dots<T, 7>, &add_dots<T, 8>, &add_dots<T, 9>};
  if (count == 0) return;
  // Blocks of like size: one of a single place would wait for every sum.
  const int64_t block = divide_up(count, divide_up(count, kMost));
  for (int64_t at = 0; at < count; at += block) {
    const int64_t some = block < count - at ? block : count - at;
    kDots[some - 1](left, right, places + at, steps, sums + at);
  }
}

template <typename T>
void patch_sums(const T* factors, const int64_t* places, int64_t count, const T* const* patches,
                int64_t terms, const Steps& steps, T* to) {
  const auto add = terms == 2 ? &add_patches<T, 2> : &add_patches<T, 1>;
  add(factors, places, count, patches, steps, to);
}

template <typename T>
BlockProduct<T> block_product(int64_t rows, int64_t vectors) {
  static constexpr auto kBlocks = Shapes<BlockLoop<T>>().fill();
  return kBlocks.of[rows - 1][vectors - 1];
}

// Where a panel is narrower than kRowVectors vectors, successive terms go to separate sets of sums.
template <typename T>
void row_product(const Row<T>& row) {
  using Vector = typename Wide<T>::Vector;
  constexpr int kLanes = Wide<T>::kLanes, kFit = kPanel / kLanes;
  constexpr int kVectors = kFit < kRowVectors ? kFit : kRowVectors, kSets = kRowVectors / kVectors;
  static_assert(kPanel % (kVectors * kLanes) == 0);
  for (int64_t i = 0; i < row.next_entries; i += kLine<T>) __builtin_prefetch(row.next + i);
  Vector sum[kSets][kVectors] = {};
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    if (!row.fresh) sum[0][v] = load(row.sums + v * kLanes);
  }
  const auto add = [&](const Term<T>& term, Vector(&to)[kVectors]) __attribute__((always_inline)) {
    const Vector factor = term.factor - Vector{};
    const T* right = row.right + term.at;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) to[v] += factor * load(right + v * kLanes);
  };
  const Term<T>*term = row.terms, *end = term + row.count;
  for (; end - term >= kSets; term += kSets) {
#pragma GCC unroll 8
    for (int set = 0; set < kSets; ++set) add(term[set], sum[set]);
  }
  for (; term < end; ++term) add(*term, sum[0]);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (int set = 1; set < kSets; ++set) sum[0][v] += sum[set][v];
    store(sum[0][v], row.sums + v * kLanes);
  }
}

template <typename T>
TileLimits tile_limits() {
  return {Wide<T>::kLanes, kSums, kMostRows, sizeof(T)};
}

#define VLEAK_TILE(T)                                                                                    \
  template Tile<T> tile<T>(int64_t, int64_t);                                                            \
  template void patch_dots<T>(const T*, const T*, const int64_t*, int64_t, const Steps&, T*);            \
  template void patch_sums<T>(const T*, const int64_t*, int64_t, const T* const*, int64_t, const Steps&, \
                              T*);                                                                       \
  template BlockProduct<T> block_product<T>(int64_t, int64_t);                                           \
  template void row_product<T>(const Row<T>&);                                                           \
  template TileLimits tile_limits<T>();

VLEAK_TILE(float)
VLEAK_TILE(double)

}  // namespace vleak::VLEAK_VARIANT
