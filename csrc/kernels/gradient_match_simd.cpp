#include "kernels/dispatch.h"

namespace vleak::VLEAK_VARIANT {
namespace {

// Sixteen lanes of partial sums on every machine, whatever its registers hold: every instruction set adds in
// the same order and gives the same bits.
typedef double Lanes __attribute__((vector_size(64)));
constexpr int kLanes = 8;
constexpr int kBlock = 2 * kLanes;

struct Sums {
  Lanes dot[2] = {};
  Lanes gradient[2] = {};
  Lanes target[2] = {};
};

template <typename T>
VLEAK_INLINE Lanes load(const T* from /* [8] */) {
  typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Narrow*>(from), Lanes);
}

template <MatchKind kKind, typename T>
VLEAK_INLINE void add_block(const T* gradient /* [16] */, const T* target /* [16] */, Sums& sums) {
  for (int half = 0; half < 2; ++half) {
    const Lanes g = load(gradient + half * kLanes);
    const Lanes t = load(target + half * kLanes);
    if (kKind == MatchKind::kL2) {
      sums.dot[half] += (g - t) * (g - t);
    } else {
      sums.dot[half] += g * t;
      sums.gradient[half] += g * g;
      sums.target[half] += t * t;
    }
  }
}

double total(const Lanes* lanes /* [2] */) {
  double sum = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[0][lane] + lanes[1][lane];
  return sum;
}

// The compiler vectorises loops over bytes, but not loops over bool.
VLEAK_INLINE const uint8_t* bytes(const bool* mask) { return reinterpret_cast<const uint8_t*>(mask); }

// Copies `count` entries of a block, and 0 in place of masked ones.
template <bool kMasked, typename T>
VLEAK_INLINE void copy_block(const T* __restrict from, const uint8_t* __restrict mask, int64_t count,
                             T* __restrict block /* [16] */) {
  for (int64_t i = 0; i < count; ++i) {
    const T entry = from[i];
    block[i] = !kMasked || mask[i] != 0 ? entry : T(0);
  }
}

template <MatchKind kKind, bool kMasked, typename T>
MatchSums piece_sums(const MatchTensor<T>& piece) {
  Sums sums;
  const int64_t whole = piece.count / kBlock * kBlock;
  T gradient[kBlock] = {}, target[kBlock] = {};
  for (int64_t start = 0; start < whole; start += kBlock) {
    if (kMasked) {
      copy_block<true>(piece.gradient + start, bytes(piece.mask) + start, kBlock, gradient);
      copy_block<true>(piece.target + start, bytes(piece.mask) + start, kBlock, target);
      add_block<kKind>(gradient, target, sums);
    } else {
      add_block<kKind>(piece.gradient + start, piece.target + start, sums);
    }
  }
  if (whole < piece.count) {
    T last_gradient[kBlock] = {}, last_target[kBlock] = {};
    const uint8_t* mask = kMasked ? bytes(piece.mask) + whole : nullptr;
    copy_block<kMasked>(piece.gradient + whole, mask, piece.count - whole, last_gradient);
    copy_block<kMasked>(piece.target + whole, mask, piece.count - whole, last_target);
    add_block<kKind>(last_gradient, last_target, sums);
  }
  return {total(sums.dot), total(sums.gradient), total(sums.target)};
}

template <MatchKind kKind, typename T>
MatchSums sums_of(const MatchTensor<T>& piece) {
  return piece.mask ? piece_sums<kKind, true>(piece) : piece_sums<kKind, false>(piece);
}

template <typename T>
void piece_residual(const MatchTensor<T>& piece, double of_gradient, double of_target) {
  const T* __restrict gradient = piece.gradient;
  const T* __restrict target = piece.target;
  T* __restrict residual = piece.residual;
  for (int64_t i = 0; i < piece.count; ++i) {
    residual[i] = static_cast<T>(of_gradient * gradient[i] + of_target * target[i]);
  }
  if (!piece.mask) return;
  const uint8_t* __restrict mask = bytes(piece.mask);
  for (int64_t i = 0; i < piece.count; ++i) residual[i] = mask[i] != 0 ? residual[i] : T(0);
}

}  // namespace

template <typename T>
void match_sums(const MatchTensor<T>* pieces, int64_t begin, int64_t end, MatchKind kind, MatchSums* sums) {
  for (int64_t i = begin; i < end; ++i) {
    sums[i] =
        kind == MatchKind::kL2 ? sums_of<MatchKind::kL2>(pieces[i]) : sums_of<MatchKind::kCosine>(pieces[i]);
  }
}

template <typename T>
void match_residuals(const MatchTensor<T>* pieces, int64_t begin, int64_t end, const MatchResult& result) {
  for (int64_t i = begin; i < end; ++i) piece_residual(pieces[i], result.of_gradient, result.of_target);
}

template void match_sums<float>(const MatchTensor<float>*, int64_t, int64_t, MatchKind, MatchSums*);
template void match_sums<double>(const MatchTensor<double>*, int64_t, int64_t, MatchKind, MatchSums*);
template void match_residuals<float>(const MatchTensor<float>*, int64_t, int64_t, const MatchResult&);
template void match_residuals<double>(const MatchTensor<double>*, int64_t, int64_t, const MatchResult&);

}  // namespace vleak::VLEAK_VARIANT
