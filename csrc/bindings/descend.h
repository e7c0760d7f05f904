// Arguments of descend, on the CPU and on CUDA.
#pragma once

#include <tuple>

#include "bindings/arguments.h"
#include "kernels/descend.h"

namespace vleak {

inline Rule rule_of(const std::string& name) {
  STD_TORCH_CHECK(name == "adam" || name == "sign" || name == "sign_adam", "vleak: unknown rule ", name);
  return name == "adam" ? Rule::kAdam : name == "sign" ? Rule::kSign : Rule::kSignAdam;
}

// An argument that is changed in place. The kernel works on contiguous memory; write_back copies the result
// into the argument where that is not contiguous itself.
class InPlace {
 public:
  explicit InPlace(const Tensor& tensor)
      : original_(tensor), copied_(!tensor.is_contiguous()), work_(as_contiguous(tensor)) {}

  const Tensor& tensor() const { return work_; }

  template <typename T>
  T* data() const {
    return work_.mutable_data_ptr<T>();
  }

  void write_back() {
    if (copied_) torch::stable::copy_(original_, work_);
  }

 private:
  Tensor original_;
  bool copied_;
  Tensor work_;
};

// The tensors of one call as contiguous memory, and its two results.
struct DescendState {
  ClipSize size;
  Tensor x, data_gradient, distance, numbers;
  std::optional<Tensor> prior;
  InPlace m, v, best, best_objective;
  Tensor moved, objective;

  template <typename T>
  Trials<T> trials() const {
    const bool shared = prior.has_value() && prior->size(0) != size.trials;
    return {size,
            x.const_data_ptr<T>(),
            data_gradient.const_data_ptr<T>(),
            pointer<T>(prior),
            shared ? 0 : trial_size(size),
            m.data<T>(),
            v.data<T>(),
            moved.mutable_data_ptr<T>()};
  }

  void check_all() const {
    check_kind(numbers, x, "settings", ScalarType::Double);
    check(numbers.numel() == kStepNumbers, "settings do not match in size");
    check_like(data_gradient, x, "data_gradient");
    check_like(m.tensor(), x, "m");
    check_like(v.tensor(), x, "v");
    check_like(best.tensor(), x, "best");
    check_like(distance, objective, "distance");
    check_like(best_objective.tensor(), objective, "best_objective");
    if (!prior.has_value()) return;
    check_kind(*prior, x, "prior");
    const bool shared = prior->dim() == 5 && prior->size(0) == 1 && prior->numel() * size.trials == x.numel();
    check(shared || prior->numel() == x.numel(), "prior does not match in size");
  }
};

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
                     InPlace(m),
                     InPlace(v),
                     InPlace(best),
                     InPlace(best_objective),
                     new_contiguous(x),
                     new_contiguous(x, {size.trials})};
  state.check_all();
  const auto* numbers = reinterpret_cast<const StepNumbers*>(state.numbers.const_data_ptr<double>());
  kRun(state, {numbers, isotropic, smoothing, rule_of(rule)});
  for (InPlace* changed : {&state.m, &state.v, &state.best, &state.best_objective}) changed->write_back();
  return {state.moved, state.objective};
}

}  // namespace vleak
