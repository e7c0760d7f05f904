// Launchers of the CUDA kernels. All results are deterministic: sums run in two stages in a fixed order, and
// nothing waits for the device, so a step can be captured in a CUDA graph.
#pragma once

#include "kernels/descend.h"
#include "kernels/gradient_match.h"

struct CUstream_st;

namespace vleak::cuda {

using Stream = CUstream_st*;

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int kBlockEntries = kThreads * kPerThread;
// Tensors a launch takes as kernel arguments, which may hold 4 KiB.
constexpr int kGroup = 64;

VLEAK_INLINE int64_t blocks_for(int64_t entries) { return (entries + kBlockEntries - 1) / kBlockEntries; }
VLEAK_INLINE int64_t plane_blocks(const ClipSize& size) {
  return size.trials * planes_per_trial(size) * blocks_for(frame_size(size));
}

template <typename T>
struct MatchGroup {
  MatchPiece<T> tensors[kGroup];
  int64_t first_block[kGroup + 1];  // of each tensor within this launch, then the number of blocks
  int count;
};

// sums: [blocks of this group]
template <typename T>
void match_sums(const MatchGroup<T>& group, MatchKind kind, MatchSums* sums, Stream stream);

// sums: [blocks of all groups]; result: [1]; distance: [1]
template <typename T>
void match_finish(const MatchSums* sums, int64_t blocks, MatchKind kind, MatchResult* result, T* distance,
                  Stream stream);

// result: [1]
template <typename T>
void match_residuals(const MatchGroup<T>& group, const MatchResult* result, Stream stream);

// x, gradient: [N, C, T, H, W]; partial: [plane_blocks]; value: [N]
template <typename T>
void total_variation(const T* x, const ClipSize& size, const TvSettings& tv, double* partial, T* gradient,
                     T* value, Stream stream);

// The settings of a step: numbers that change from step to step lie in device memory.
struct StepRow {
  const double* numbers;  // [kStepNumbers]
  bool isotropic;
  double smoothing;
  Rule rule;
};

// partial: [plane_blocks]; better: [N] scratch; distance, objective, best_objective: [N]; best: [N, C, T, H,
// W]
template <typename T>
void descend(const Trials<T>& trials, const StepRow& row, const T* distance, double* partial, bool* better,
             T* objective, T* best, T* best_objective, Stream stream);

}  // namespace vleak::cuda
