#include "kernels/block_sum.h"
#include "kernels/total_variation_entry.h"

namespace vleak::cuda {
namespace {

template <bool kSmooth, typename T>
__global__ void tv_kernel(const T* x, ClipSize size, TvScale scale, bool isotropic, T eps, double* partial,
                          T* gradient) {
  __shared__ double shared[kThreads];
  const BlockPlace place = block_place(size);
  const int64_t plane_start = place.plane * frame_size(size);
  double mine = 0.0;
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = place.first + k * kThreads + threadIdx.x;
    if (i >= frame_size(size)) continue;
    const TvEntry<T> entry =
        tv_entry<kSmooth>(x + plane_start + i, i, place.frame, size, scale, isotropic, eps);
    gradient[plane_start + i] = entry.gradient;
    mine += entry.value;
  }
  const double sum = block_sum(mine, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block per trial.
template <typename T>
__global__ void value_kernel(const double* partial, int64_t blocks, T* value) {
  __shared__ double shared[kThreads];
  const double sum = sum_all(partial + blockIdx.x * blocks, blocks, shared);
  if (threadIdx.x == 0) value[blockIdx.x] = static_cast<T>(sum);
}

}  // namespace

template <typename T>
void total_variation(const T* x, const ClipSize& size, const TvSettings& tv, double* partial, T* gradient,
                     T* value, Stream stream) {
  if (size.trials == 0) return;
  const int64_t blocks = plane_blocks(size);
  const TvScale scale = tv_scale(size, tv);
  if (blocks) {
    const auto kernel = tv.smoothing > 0.0 ? tv_kernel<true, T> : tv_kernel<false, T>;
    kernel<<<blocks, kThreads, 0, stream>>>(x, size, scale, tv.isotropic, T(tv.smoothing), partial, gradient);
  }
  value_kernel<T><<<size.trials, kThreads, 0, stream>>>(partial, blocks / size.trials, value);
}

template void total_variation<float>(const float*, const ClipSize&, const TvSettings&, double*, float*,
                                     float*, Stream);
template void total_variation<double>(const double*, const ClipSize&, const TvSettings&, double*, double*,
                                      double*, Stream);

}  // namespace vleak::cuda
