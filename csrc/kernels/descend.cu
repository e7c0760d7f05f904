#include "kernels/block_sum.h"
#include "kernels/total_variation_entry.h"

namespace vleak::cuda {
namespace {

template <typename T>
struct Penalties {
  TvScale scale;
  bool isotropic;
  T smoothing;
  double prior_weight;  // per entry
};

template <typename T>
__device__ Penalties<T> penalties_of(const Trials<T>& trials, const StepSettings& step) {
  const double weight = trials.prior ? per_pair(step.numbers->prior_weight, trial_size(trials.size)) : 0.0;
  return {tv_scale(trials.size, tv_settings(step)), step.isotropic, T(step.smoothing), weight};
}

template <Rule kRule, bool kSmooth, typename T>
__global__ void step_kernel(const __grid_constant__ Trials<T> trials, StepSettings settings,
                            double* partial) {
  __shared__ double shared[kThreads];
  __shared__ Penalties<T> penalties;
  __shared__ StepFactors<T> step;
  const ClipSize& size = trials.size;
  if (threadIdx.x == 0) {
    penalties = penalties_of(trials, settings);
    step = StepFactors<T>::from(*settings.numbers);
  }
  __syncthreads();
  const BlockPlace place = block_place(size);
  const int64_t plane_start = place.plane * frame_size(size), trial_start = place.trial * trial_size(size);
  double mine = 0.0;
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = place.first + k * kThreads + threadIdx.x;
    if (i >= frame_size(size)) continue;
    const int64_t at = plane_start + i;
    const T x = trials.x[at];
    TvEntry<T> entry = tv_entry<kSmooth>(trials.x + at, i, place.frame, size, penalties.scale,
                                         penalties.isotropic, penalties.smoothing);
    if (penalties.prior_weight != 0.0) {
      const T gap = x - trials.prior[place.trial * trials.prior_stride + (at - trial_start)];
      entry.gradient += T(penalties.prior_weight) * gap;
      entry.value += 0.5 * penalties.prior_weight * static_cast<double>(gap * gap);
    }
    mine += entry.value;
    T m = trials.m[at], v = trials.v[at];
    trials.moved[at] = moved_entry<kRule>(x, trials.data_gradient[at] + entry.gradient, m, v, step);
    if (kRule != Rule::kSign) {
      trials.m[at] = m;
      trials.v[at] = v;
    }
  }
  const double sum = block_sum(mine, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block per trial. NaN compares false, so it never becomes the best.
template <typename T>
__global__ void objective_kernel(const double* partial, int64_t blocks, const T* distance, T* objective,
                                 T* best_objective, bool* better) {
  __shared__ double shared[kThreads];
  const double sum = sum_all(partial + blockIdx.x * blocks, blocks, shared);
  if (threadIdx.x != 0) return;
  const T value = static_cast<T>(static_cast<double>(distance[blockIdx.x]) + sum);
  objective[blockIdx.x] = value;
  better[blockIdx.x] = value < best_objective[blockIdx.x];
  if (better[blockIdx.x]) best_objective[blockIdx.x] = value;
}

template <typename T>
__global__ void keep_kernel(const T* x, ClipSize size, const bool* better, T* best) {
  const BlockPlace place = block_place(size);
  if (!better[place.trial]) return;
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = place.first + k * kThreads + threadIdx.x;
    if (i < frame_size(size))
      best[place.plane * frame_size(size) + i] = x[place.plane * frame_size(size) + i];
  }
}

template <Rule kRule, typename T>
void launch_step(const Trials<T>& trials, const StepSettings& step, double* partial, Stream stream) {
  const auto kernel = step.smoothing > 0.0 ? step_kernel<kRule, true, T> : step_kernel<kRule, false, T>;
  kernel<<<plane_blocks(trials.size), kThreads, 0, stream>>>(trials, step, partial);
}

}  // namespace

template <typename T>
void descend(const Trials<T>& trials, const StepSettings& step, const T* distance, double* partial,
             bool* better, T* objective, T* best, T* best_objective, Stream stream) {
  const ClipSize& size = trials.size;
  if (size.trials == 0) return;
  const int64_t blocks = plane_blocks(size);
  if (blocks) {
    if (step.rule == Rule::kAdam) launch_step<Rule::kAdam>(trials, step, partial, stream);
    if (step.rule == Rule::kSign) launch_step<Rule::kSign>(trials, step, partial, stream);
    if (step.rule == Rule::kSignAdam) launch_step<Rule::kSignAdam>(trials, step, partial, stream);
  }
  objective_kernel<T><<<size.trials, kThreads, 0, stream>>>(partial, blocks / size.trials, distance,
                                                            objective, best_objective, better);
  if (blocks) keep_kernel<T><<<blocks, kThreads, 0, stream>>>(trials.x, size, better, best);
}

template void descend<float>(const Trials<float>&, const StepSettings&, const float*, double*, bool*, float*,
                             float*, float*, Stream);
template void descend<double>(const Trials<double>&, const StepSettings&, const double*, double*, bool*,
                              double*, double*, double*, Stream);

}  // namespace vleak::cuda
