#include "kernels/gradient_match.h"

#include <algorithm>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {
namespace {

// Sums run over pieces of this many entries, never across tensors, and the sums of the pieces are added in
// order: the result does not depend on which thread computed which piece.
constexpr int64_t kPieceEntries = 16384;

template <typename T>
std::vector<MatchTensor<T>> cut_pieces(const MatchTensor<T>* tensors, int64_t count) {
  std::vector<MatchTensor<T>> pieces;
  for (int64_t i = 0; i < count; ++i) {
    const MatchTensor<T>& t = tensors[i];
    for (int64_t at = 0; at < t.count; at += kPieceEntries) {
      pieces.push_back({t.gradient + at, t.target + at, t.mask ? t.mask + at : nullptr, t.residual + at,
                        std::min(kPieceEntries, t.count - at)});
    }
  }
  return pieces;
}

}  // namespace

template <typename T>
MatchResult gradient_match(const MatchTensor<T>* tensors, int64_t count, MatchKind kind,
                           const MatchSums& other) {
  const std::vector<MatchTensor<T>> pieces = cut_pieces(tensors, count);
  const int64_t grain = grain_of(kCopyGrain, kPieceEntries);
  std::vector<MatchSums> sums(pieces.size());
  parallel_for(pieces.size(), grain, [&](int64_t begin, int64_t end) {
    cpu_kernels<T>().match_sums(pieces.data(), begin, end, kind, sums.data());
  });
  MatchSums all = other;
  for (const MatchSums& piece : sums) {
    all = {all.dot + piece.dot, all.gradient + piece.gradient, all.target + piece.target};
  }
  const MatchResult result = match_result(all, kind);
  parallel_for(pieces.size(), grain, [&](int64_t begin, int64_t end) {
    cpu_kernels<T>().match_residuals(pieces.data(), begin, end, result);
  });
  return result;
}

template MatchResult gradient_match<float>(const MatchTensor<float>*, int64_t, MatchKind, const MatchSums&);
template MatchResult gradient_match<double>(const MatchTensor<double>*, int64_t, MatchKind, const MatchSums&);

}  // namespace vleak
