// CPU implementations of the operators that vleak/ops.py declares.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "bindings/arguments.h"
#include "kernels/dispatch.h"

namespace vleak {
namespace {

// A thread is worth waking for about this many entries.
constexpr int64_t kGrain = 32768;

template <typename T>
std::vector<MatchPiece<T>> cut_pieces(const std::vector<Tensor>& gradients,
                                      const std::vector<Tensor>& targets, const std::vector<Tensor>& masks,
                                      const std::vector<Tensor>& residuals) {
  std::vector<MatchPiece<T>> pieces;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const T* gradient = gradients[i].const_data_ptr<T>();
    const T* target = targets[i].const_data_ptr<T>();
    const bool* mask = masks.empty() ? nullptr : masks[i].const_data_ptr<bool>();
    T* residual = residuals[i].mutable_data_ptr<T>();
    const int64_t count = gradients[i].numel();
    for (int64_t at = 0; at < count; at += kMatchPiece) {
      pieces.push_back({gradient + at, target + at, mask ? mask + at : nullptr, residual + at,
                        std::min(kMatchPiece, count - at)});
    }
  }
  return pieces;
}

// all: sums of tensors that are not in the pieces
template <typename T>
MatchResult match(const std::vector<MatchPiece<T>>& pieces, MatchKind kind, MatchSums all) {
  const int64_t count = static_cast<int64_t>(pieces.size());
  const int64_t grain = std::max<int64_t>(1, kGrain / kMatchPiece);
  std::vector<MatchSums> sums(pieces.size());
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    cpu_kernels<T>().match_sums(pieces.data(), begin, end, kind, sums.data());
  });
  for (const MatchSums& piece : sums) {
    all = {all.dot + piece.dot, all.gradient + piece.gradient, all.target + piece.target};
  }
  const MatchResult result = match_result(all, kind);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    cpu_kernels<T>().match_residuals(pieces.data(), begin, end, result);
  });
  return result;
}

std::tuple<Tensor, std::vector<Tensor>> gradient_match(std::vector<Tensor> gradients,
                                                       std::vector<Tensor> targets, std::vector<Tensor> masks,
                                                       std::string kind) {
  check_lists(gradients, targets, masks);
  gradients = dense(gradients);
  targets = dense(targets);
  masks = dense(masks);
  const std::vector<Tensor> residuals = new_contiguous_each(gradients);
  Tensor distance = new_contiguous(gradients[0], {});
  with_type(gradients[0], [&](auto zero) {
    using T = decltype(zero);
    const auto pieces = cut_pieces<T>(gradients, targets, masks, residuals);
    *distance.mutable_data_ptr<T>() =
        static_cast<T>(match(pieces, match_kind(kind), {0.0, 0.0, 0.0}).distance);
  });
  return {distance, residuals};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> gradient_match_partial(std::vector<Tensor> gradients,
                                                                       std::vector<Tensor> targets,
                                                                       std::vector<Tensor> masks, Tensor sums,
                                                                       std::string kind) {
  check_lists(gradients, targets, masks);
  STD_TORCH_CHECK(sums.scalar_type() == ScalarType::Double && sums.numel() == 3 && sums.is_contiguous() &&
                      sums.device() == gradients[0].device(),
                  "vleak: gradient_match_partial: sums do not match");
  gradients = dense(gradients);
  targets = dense(targets);
  masks = dense(masks);
  const std::vector<Tensor> residuals = new_contiguous_each(gradients);
  Tensor distance = new_contiguous(gradients[0], {}), factors = new_contiguous(gradients[0], {2});
  const double* others = sums.const_data_ptr<double>();
  with_type(gradients[0], [&](auto zero) {
    using T = decltype(zero);
    const auto pieces = cut_pieces<T>(gradients, targets, masks, residuals);
    const MatchResult result = match(pieces, match_kind(kind), {others[0], others[1], others[2]});
    *distance.mutable_data_ptr<T>() = static_cast<T>(result.distance);
    factors.mutable_data_ptr<T>()[0] = static_cast<T>(result.of_gradient);
    factors.mutable_data_ptr<T>()[1] = static_cast<T>(result.of_target);
  });
  return {distance, residuals, factors};
}

int64_t plane_grain(const ClipSize& size) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, frame_size(size)));
}

// Runs over all planes in parallel, with scratch space for each thread, and adds up each trial in order.
template <typename Run>
std::vector<double> trial_values(const ClipSize& size, Run run) {
  const int64_t planes = frame_size(size) ? size.trials * planes_per_trial(size) : 0;
  std::vector<double> partial(planes), values(size.trials, 0.0);
  torch::stable::parallel_for(0, planes, plane_grain(size), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(scratch_doubles(size.width));
    run(begin, end, scratch.data(), partial.data());
  });
  for (int64_t plane = 0; plane < planes; ++plane) values[plane / planes_per_trial(size)] += partial[plane];
  return values;
}

std::tuple<Tensor, Tensor> total_variation(Tensor x, double spatial, double temporal, bool isotropic,
                                           double smoothing) {
  const ClipSize size = clip_size(x);
  const TvSettings tv = {spatial, temporal, smoothing, isotropic};
  x = dense(x);
  Tensor value = new_contiguous(x, {size.trials}), gradient = new_contiguous(x);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* clip = x.const_data_ptr<T>();
    T* slope = gradient.mutable_data_ptr<T>();
    const auto values = trial_values(size, [&](int64_t begin, int64_t end, double* scratch, double* partial) {
      cpu_kernels<T>().tv_planes(clip, size, tv, begin, end, scratch, slope, partial);
    });
    std::copy(values.begin(), values.end(), value.mutable_data_ptr<T>());
  });
  return {value, gradient};
}

// A NaN compares false, so it never becomes the best.
template <typename T>
void keep_best(const Trials<T>& trials, const T* objective, T* best, T* best_objective) {
  const int64_t entries = trial_size(trials.size);
  for (int64_t trial = 0; trial < trials.size.trials; ++trial) {
    if (!(objective[trial] < best_objective[trial])) continue;
    best_objective[trial] = objective[trial];
    std::memcpy(best + trial * entries, trials.x + trial * entries, sizeof(T) * entries);
  }
}

std::tuple<Tensor, Tensor> descend(Tensor x, Tensor data_gradient, Tensor distance, Tensor m, Tensor v,
                                   Tensor best, Tensor best_objective, std::optional<Tensor> prior,
                                   Tensor settings, bool isotropic, double smoothing, std::string rule) {
  State state(x, data_gradient, distance, m, v, best, best_objective, prior, settings);
  const StepSettings step =
      step_settings(state.numbers.const_data_ptr<double>(), isotropic, smoothing, rule_of(rule));
  with_type(state.x, [&](auto zero) {
    using T = decltype(zero);
    const Trials<T> trials = state.trials<T>();
    const auto values =
        trial_values(state.size, [&](int64_t begin, int64_t end, double* scratch, double* partial) {
          cpu_kernels<T>().descend_planes(trials, step, begin, end, scratch, partial);
        });
    const T* terms = state.distance.const_data_ptr<T>();
    T* sum = state.objective.mutable_data_ptr<T>();
    for (size_t i = 0; i < values.size(); ++i)
      sum[i] = static_cast<T>(static_cast<double>(terms[i]) + values[i]);
    keep_best(trials, sum, state.best.data<T>(), state.best_objective.data<T>());
  });
  state.write_back();
  return {state.moved, state.objective};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("gradient_match", TORCH_BOX(&vleak::gradient_match));
  library.impl("gradient_match_partial", TORCH_BOX(&vleak::gradient_match_partial));
  library.impl("total_variation", TORCH_BOX(&vleak::total_variation));
  library.impl("descend", TORCH_BOX(&vleak::descend));
}
