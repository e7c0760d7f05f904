// Launchers of the CUDA kernels. All results are deterministic: sums run in two passes in a fixed order. No
// launcher waits for the device, so a step can be captured in a CUDA graph.
#pragma once

#include "kernels/descend.h"
#include "kernels/gradient_match.h"

struct CUstream_st;

namespace vleak::cuda {

using Stream = CUstream_st*;

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int kBlockEntries = kThreads * kPerThread;

VLEAK_INLINE int64_t blocks_for(int64_t entries) { return divide_up(entries, kBlockEntries); }
VLEAK_INLINE int64_t plane_blocks(const ClipSize& size) {
  return size.trials * planes_per_trial(size) * blocks_for(frame_size(size));
}

// Bytes of device memory for gradient_match.
template <typename T>
int64_t match_scratch_bytes(const MatchTensor<T>* tensors /* [count] */, int64_t count);

// tensors lie in host memory, the arrays that they name in device memory.
template <typename T>
void gradient_match(const MatchTensor<T>* tensors /* [count] */, int64_t count, MatchKind kind,
                    void* scratch /* [match_scratch_bytes] */, T* distance /* [1] */, Stream stream);

// x, gradient: [N, C, T, H, W]; partial: [plane_blocks]; value: [N]
template <typename T>
void total_variation(const T* x, const ClipSize& size, const TvSettings& tv, double* partial, T* gradient,
                     T* value, Stream stream);

// partial: [plane_blocks]; better: [N], scratch; distance, objective, best_objective: [N];
// best: [N, C, T, H, W]
template <typename T>
void descend(const Trials<T>& trials, const StepSettings& step, const T* distance, double* partial,
             bool* better, T* objective, T* best, T* best_objective, Stream stream);

}  // namespace vleak::cuda
