#include "kernels/total_variation_rows.h"

namespace vleak::VLEAK_VARIANT {
namespace {

// total += weight * (x - prior), value += weight / 2 * (x - prior)^2
template <typename T>
void add_prior(const T* __restrict x, const T* __restrict prior, int64_t count, double weight,
               T* __restrict total, double* __restrict value) {
  const T narrow = static_cast<T>(weight);
  for (int64_t i = 0; i < count; ++i) {
    const T gap = x[i] - prior[i];
    total[i] += narrow * gap;
    value[i] += 0.5 * weight * static_cast<double>(gap * gap);
  }
}

template <Rule kRule, typename T>
void move_row(const T* __restrict x, const T* __restrict data_gradient, const T* __restrict penalties,
              T* __restrict m, T* __restrict v, T* __restrict moved, int64_t count,
              const StepFactors<T>& step) {
  for (int64_t i = 0; i < count; ++i) {
    moved[i] = moved_entry<kRule>(x[i], data_gradient[i] + penalties[i], m[i], v[i], step);
  }
}

// tv_plane for a total variation without weight.
template <typename T, typename FinishRow>
double flat_plane(int64_t plane, const ClipSize& size, double* scratch, FinishRow finish_row) {
  const Rows<T> rows = cut_rows<T>(scratch, size.width);
  for (int64_t h = 0; h < size.height; ++h) {
    std::memset(rows.gradient, 0, sizeof(T) * size.width);
    finish_row(plane * frame_size(size) + h * size.width, rows.gradient, rows.value);
  }
  double sum = 0.0;
  for (int64_t w = 0; w < size.width; ++w) sum += rows.value[w];
  return sum;
}

template <Rule kRule, typename T>
void descend_range(const Trials<T>& trials, const StepSettings& step, int64_t begin, int64_t end,
                   double* scratch, double* value) {
  const ClipSize& size = trials.size;
  const TvSettings settings = tv_settings(step);
  const TvNumbers<T> tv = tv_numbers<T>(size, settings);
  const bool varies = tv.scale.across != 0.0 || tv.scale.down != 0.0 || tv.scale.time != 0.0;
  const StepFactors<T> factors = StepFactors<T>::from(*step.numbers);
  const int64_t entries = trial_size(size);
  const double prior_weight = trials.prior ? per_pair(step.numbers->prior_weight, entries) : 0.0;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t trial = plane / planes_per_trial(size);
    const auto finish_row = [&](int64_t at, T* penalties, double* row_value) {
      if (prior_weight != 0.0) {
        const T* prior = trials.prior + trial * trials.prior_stride + (at - trial * entries);
        add_prior(trials.x + at, prior, size.width, prior_weight, penalties, row_value);
      }
      move_row<kRule>(trials.x + at, trials.data_gradient + at, penalties, trials.m + at, trials.v + at,
                      trials.moved + at, size.width, factors);
    };
    value[plane] = varies ? tv_plane(trials.x, plane, size, settings, tv, scratch, finish_row)
                          : flat_plane<T>(plane, size, scratch, finish_row);
  }
}

}  // namespace

// begin, end: planes of [N * C * T]; value: [N * C * T], the sum of all penalties of a plane
template <typename T>
void descend_planes(const Trials<T>& trials, const StepSettings& step, int64_t begin, int64_t end,
                    double* scratch, double* value) {
  switch (step.rule) {
    case Rule::kAdam:
      return descend_range<Rule::kAdam>(trials, step, begin, end, scratch, value);
    case Rule::kSign:
      return descend_range<Rule::kSign>(trials, step, begin, end, scratch, value);
    case Rule::kSignAdam:
      return descend_range<Rule::kSignAdam>(trials, step, begin, end, scratch, value);
  }
}

template void descend_planes<float>(const Trials<float>&, const StepSettings&, int64_t, int64_t, double*,
                                    double*);
template void descend_planes<double>(const Trials<double>&, const StepSettings&, int64_t, int64_t, double*,
                                     double*);

}  // namespace vleak::VLEAK_VARIANT
