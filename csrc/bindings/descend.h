// Arguments of descend, on the CPU and on CUDA.
#pragma once

#include <tuple>

#include "bindings/arguments.h"
#include "kernels/descend.h"

namespace vleak {

inline Rule rule_of(const std::string& name) {
  check(name == "adam" || name == "sign" || name == "sign_adam", "unknown rule ", name);
  return name == "adam" ? Rule::kAdam : name == "sign" ? Rule::kSign : Rule::kSignAdam;
}

// The tensors of one call as contiguous memory, and its two results.
struct DescendState {
  ClipSize size;
  Tensor x, data_gradient, distance, numbers;
  std::optional<Tensor> prior;
  Tensor m, v, best, best_objective;  // changed in place
  Tensor moved, objective;

  template <typename T>
  Trials<T> trials() const {
    const bool shared = prior.has_value() && prior->size(0) != size.trials;
    return {size,
            x.const_data_ptr<T>(),
            data_gradient.const_data_ptr<T>(),
            pointer<T>(prior),
            shared ? 0 : trial_size(size),
            m.mutable_data_ptr<T>(),
            v.mutable_data_ptr<T>(),
            moved.mutable_data_ptr<T>()};
  }

  void check_all() const {
    check_kind(numbers, x, "settings", ScalarType::Double);
    check(numbers.numel() == kStepNumbers, "settings do not match in size");
    check_like(data_gradient, x, "data_gradient");
    check_like(m, x, "m");
    check_like(v, x, "v");
    check_like(best, x, "best");
    check_like(distance, objective, "distance");
    check_like(best_objective, objective, "best_objective");
    if (!prior.has_value()) return;
    check_kind(*prior, x, "prior");
    const bool shared = prior->dim() == 5 && prior->size(0) == 1 && prior->numel() * size.trials == x.numel();
    check(shared || prior->numel() == x.numel(), "prior does not match in size");
  }
};

// The kernels change contiguous memory, which is the argument itself or a copy of it.
inline void write_back(const Tensor& changed, Tensor& argument) {
  if (!argument.is_contiguous()) torch::stable::copy_(argument, changed);
}

// kRun calls the kernel of a device.
template <void (*kRun)(const DescendState&, const StepSettings&)>
std::tuple<Tensor, Tensor> call_descend(Tensor x, Tensor data_gradient, Tensor distance, Tensor m, Tensor v,
                                        Tensor best, Tensor best_objective, std::optional<Tensor> prior,
                                        Tensor settings, bool isotropic, double smoothing, std::string rule) {
  const ClipSize size = clip_size(x);
  DescendState state{size,
                     as_contiguous(x),
                     as_contiguous(data_gradient),
                     as_contiguous(distance),
                     as_contiguous(settings),
                     as_contiguous(prior),
                     as_contiguous(m),
                     as_contiguous(v),
                     as_contiguous(best),
                     as_contiguous(best_objective),
                     new_contiguous(x),
                     new_contiguous(x, {size.trials})};
  state.check_all();
  const auto* numbers = reinterpret_cast<const StepNumbers*>(state.numbers.const_data_ptr<double>());
  kRun(state, {numbers, isotropic, smoothing, rule_of(rule)});
  write_back(state.m, m);
  write_back(state.v, v);
  write_back(state.best, best);
  write_back(state.best_objective, best_objective);
  return {state.moved, state.objective};
}

}  // namespace vleak
