#include "kernels/block_sum.h"

namespace vleak::cuda {
namespace {

struct Piece {
  int tensor;
  int64_t first;  // entry of the tensor
};

template <typename T>
__device__ __forceinline__ Piece piece_of(const MatchGroup<T>& group) {
  int tensor = 0;
  while (static_cast<int64_t>(blockIdx.x) >= group.first_block[tensor + 1]) ++tensor;
  return {tensor, (static_cast<int64_t>(blockIdx.x) - group.first_block[tensor]) * kBlockEntries};
}

template <typename T>
__global__ void sums_kernel(const __grid_constant__ MatchGroup<T> group, MatchKind kind, MatchSums* sums) {
  __shared__ double shared[kThreads];
  const Piece piece = piece_of(group);
  const MatchPiece<T>& tensor = group.tensors[piece.tensor];
  MatchSums mine = {0.0, 0.0, 0.0};
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = piece.first + k * kThreads + threadIdx.x;
    if (i >= tensor.count || (tensor.mask && !tensor.mask[i])) continue;
    const double g = tensor.gradient[i], t = tensor.target[i];
    mine.dot += kind == MatchKind::kL2 ? (g - t) * (g - t) : g * t;
    mine.gradient += g * g;
    mine.target += t * t;
  }
  const double dot = block_sum(mine.dot, shared);
  const double gradient = block_sum(mine.gradient, shared);
  const double target = block_sum(mine.target, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = {dot, gradient, target};
}

template <typename T>
__global__ void finish_kernel(const MatchSums* sums, int64_t blocks, MatchKind kind, MatchResult* result,
                              T* distance) {
  __shared__ double shared[kThreads];
  MatchSums mine = {0.0, 0.0, 0.0};
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
    mine = {mine.dot + sums[i].dot, mine.gradient + sums[i].gradient, mine.target + sums[i].target};
  }
  const double dot = block_sum(mine.dot, shared);
  const double gradient = block_sum(mine.gradient, shared);
  const double target = block_sum(mine.target, shared);
  if (threadIdx.x != 0) return;
  *result = match_result({dot, gradient, target}, kind);
  *distance = static_cast<T>(result->distance);
}

template <typename T>
__global__ void residuals_kernel(const __grid_constant__ MatchGroup<T> group, const MatchResult* result) {
  const Piece piece = piece_of(group);
  const MatchPiece<T>& tensor = group.tensors[piece.tensor];
  const double of_gradient = result->of_gradient, of_target = result->of_target;
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = piece.first + k * kThreads + threadIdx.x;
    if (i >= tensor.count) continue;
    const bool counts = !tensor.mask || tensor.mask[i];
    tensor.residual[i] =
        counts ? static_cast<T>(of_gradient * tensor.gradient[i] + of_target * tensor.target[i]) : T(0);
  }
}

}  // namespace

template <typename T>
void match_sums(const MatchGroup<T>& group, MatchKind kind, MatchSums* sums, Stream stream) {
  const int64_t blocks = group.first_block[group.count];
  if (blocks) sums_kernel<T><<<blocks, kThreads, 0, stream>>>(group, kind, sums);
}

template <typename T>
void match_finish(const MatchSums* sums, int64_t blocks, MatchKind kind, MatchResult* result, T* distance,
                  Stream stream) {
  finish_kernel<T><<<1, kThreads, 0, stream>>>(sums, blocks, kind, result, distance);
}

template <typename T>
void match_residuals(const MatchGroup<T>& group, const MatchResult* result, Stream stream) {
  const int64_t blocks = group.first_block[group.count];
  if (blocks) residuals_kernel<T><<<blocks, kThreads, 0, stream>>>(group, result);
}

template void match_sums<float>(const MatchGroup<float>&, MatchKind, MatchSums*, Stream);
template void match_sums<double>(const MatchGroup<double>&, MatchKind, MatchSums*, Stream);
template void match_finish<float>(const MatchSums*, int64_t, MatchKind, MatchResult*, float*, Stream);
template void match_finish<double>(const MatchSums*, int64_t, MatchKind, MatchResult*, double*, Stream);
template void match_residuals<float>(const MatchGroup<float>&, const MatchResult*, Stream);
template void match_residuals<double>(const MatchGroup<double>&, const MatchResult*, Stream);

}  // namespace vleak::cuda
