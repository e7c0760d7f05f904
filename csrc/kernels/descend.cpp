#include "kernels/descend.h"

#include <cstring>

#include "kernels/planes.h"

namespace vleak {
namespace {

// NaN compares false, so it never becomes the best.
template <typename T>
void keep_best(const Trials<T>& trials, const T* objective, T* best, T* best_objective) {
  const int64_t entries = trial_size(trials.size);
  for (int64_t trial = 0; trial < trials.size.trials; ++trial) {
    if (!(objective[trial] < best_objective[trial])) continue;
    best_objective[trial] = objective[trial];
    std::memcpy(best + trial * entries, trials.x + trial * entries, sizeof(T) * entries);
  }
}

}  // namespace

template <typename T>
void descend(const Trials<T>& trials, const StepSettings& step, const T* distance, T* objective, T* best,
             T* best_objective) {
  const auto values =
      sum_planes(trials.size, [&](int64_t begin, int64_t end, double* scratch, double* partial) {
        cpu_kernels<T>().descend_planes(trials, step, begin, end, scratch, partial);
      });
  for (size_t i = 0; i < values.size(); ++i)
    objective[i] = static_cast<T>(static_cast<double>(distance[i]) + values[i]);
  keep_best(trials, objective, best, best_objective);
}

template void descend<float>(const Trials<float>&, const StepSettings&, const float*, float*, float*, float*);
template void descend<double>(const Trials<double>&, const StepSettings&, const double*, double*, double*,
                              double*);

}  // namespace vleak
