#include <vector>

#include "kernels/block_sum.h"

namespace vleak::cuda {
namespace {

// Tensors per launch: they are kernel arguments, which may hold 4 KiB.
constexpr int64_t kGroup = 64;

template <typename T>
struct MatchGroup {
  MatchTensor<T> tensors[kGroup];
  int64_t first_block[kGroup + 1];  // of each tensor within this launch, then the number of blocks
  int64_t count;

  int64_t blocks() const { return first_block[count]; }
};

template <typename T>
std::vector<MatchGroup<T>> cut_groups(const MatchTensor<T>* tensors, int64_t count) {
  std::vector<MatchGroup<T>> groups(divide_up(count, kGroup));
  for (int64_t i = 0; i < count; ++i) {
    MatchGroup<T>& group = groups[i / kGroup];
    group.tensors[group.count] = tensors[i];
    group.first_block[group.count + 1] = group.blocks() + blocks_for(tensors[i].count);
    ++group.count;
  }
  return groups;
}

// Of the block, in thread 0.
__device__ __forceinline__ MatchSums block_sums(const MatchSums& mine, double* shared /* [kThreads] */) {
  const double dot = block_sum(mine.dot, shared), gradient = block_sum(mine.gradient, shared);
  return {dot, gradient, block_sum(mine.target, shared)};
}

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
  const MatchTensor<T>& tensor = group.tensors[piece.tensor];
  MatchSums mine = {0.0, 0.0, 0.0};
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = piece.first + k * kThreads + threadIdx.x;
    if (i >= tensor.count || (tensor.mask && !tensor.mask[i])) continue;
    const double g = tensor.gradient[i], t = tensor.target[i];
    mine.dot += kind == MatchKind::kL2 ? (g - t) * (g - t) : g * t;
    mine.gradient += g * g;
    mine.target += t * t;
  }
  const MatchSums all = block_sums(mine, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

template <typename T>
__global__ void finish_kernel(const MatchSums* sums, int64_t blocks, MatchKind kind, MatchResult* result,
                              T* distance) {
  __shared__ double shared[kThreads];
  MatchSums mine = {0.0, 0.0, 0.0};
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
    mine = {mine.dot + sums[i].dot, mine.gradient + sums[i].gradient, mine.target + sums[i].target};
  }
  const MatchSums all = block_sums(mine, shared);
  if (threadIdx.x != 0) return;
  *result = match_result(all, kind);
  *distance = static_cast<T>(result->distance);
}

template <typename T>
__global__ void residuals_kernel(const __grid_constant__ MatchGroup<T> group, const MatchResult* result) {
  const Piece piece = piece_of(group);
  const MatchTensor<T>& tensor = group.tensors[piece.tensor];
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
int64_t match_scratch_bytes(const MatchTensor<T>* tensors, int64_t count) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += blocks_for(tensors[i].count);
  return sizeof(MatchResult) + blocks * sizeof(MatchSums);
}

template <typename T>
void gradient_match(const MatchTensor<T>* tensors, int64_t count, MatchKind kind, void* scratch, T* distance,
                    Stream stream) {
  auto* result = static_cast<MatchResult*>(scratch);
  auto* sums = reinterpret_cast<MatchSums*>(result + 1);
  const std::vector<MatchGroup<T>> groups = cut_groups(tensors, count);
  int64_t first = 0;
  for (const MatchGroup<T>& group : groups) {
    if (group.blocks()) {
      sums_kernel<T><<<group.blocks(), kThreads, 0, stream>>>(group, kind, sums + first);
    }
    first += group.blocks();
  }
  finish_kernel<T><<<1, kThreads, 0, stream>>>(sums, first, kind, result, distance);
  for (const MatchGroup<T>& group : groups) {
    if (group.blocks()) residuals_kernel<T><<<group.blocks(), kThreads, 0, stream>>>(group, result);
  }
}

template int64_t match_scratch_bytes<float>(const MatchTensor<float>*, int64_t);
template int64_t match_scratch_bytes<double>(const MatchTensor<double>*, int64_t);
template void gradient_match<float>(const MatchTensor<float>*, int64_t, MatchKind, void*, float*, Stream);
template void gradient_match<double>(const MatchTensor<double>*, int64_t, MatchKind, void*, double*, Stream);

}  // namespace vleak::cuda
