// Sums over a thread block in a fixed order.
#pragma once

#include "kernels/cuda.h"

namespace vleak::cuda {

// The sum over the block, in thread 0. All threads must call it; `shared` holds kThreads doubles.
static __device__ __forceinline__ double block_sum(double mine, double* shared /* [kThreads] */) {
  __syncthreads();
  shared[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  return shared[0];
}

// The sum of partial[0..count), in thread 0.
static __device__ __forceinline__ double sum_all(const double* partial, int64_t count,
                                                 double* shared /* [kThreads] */) {
  double mine = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) mine += partial[i];
  return block_sum(mine, shared);
}

}  // namespace vleak::cuda
