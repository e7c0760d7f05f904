// Arguments of descend, on the CPU and on CUDA.
#pragma once

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

  DescendState(const Tensor& x_, const Tensor& data_gradient_, const Tensor& distance_, const Tensor& m_,
               const Tensor& v_, const Tensor& best_, const Tensor& best_objective_,
               const std::optional<Tensor>& prior_, const Tensor& settings)
      : size(clip_size(x_)),
        x(as_contiguous(x_)),
        data_gradient(as_contiguous(data_gradient_)),
        distance(as_contiguous(distance_)),
        numbers(as_contiguous(settings)),
        m(m_),
        v(v_),
        best(best_),
        best_objective(best_objective_),
        moved(new_contiguous(x_)),
        objective(new_contiguous(x_, {size.trials})) {
    if (prior_.has_value()) prior = as_contiguous(*prior_);
    check_all();
  }

  // On the device of x.
  const StepNumbers* step_numbers() const {
    return reinterpret_cast<const StepNumbers*>(numbers.const_data_ptr<double>());
  }

  template <typename T>
  Trials<T> trials() const {
    const bool shared = prior.has_value() && prior->size(0) != size.trials;
    return {size,
            x.const_data_ptr<T>(),
            data_gradient.const_data_ptr<T>(),
            prior.has_value() ? prior->const_data_ptr<T>() : nullptr,
            shared ? 0 : trial_size(size),
            m.data<T>(),
            v.data<T>(),
            moved.mutable_data_ptr<T>()};
  }

  void write_back() {
    for (InPlace* changed : {&m, &v, &best, &best_objective}) changed->write_back();
  }

 private:
  void check_all() const {
    STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Double && numbers.numel() == kStepNumbers &&
                        numbers.device() == x.device(),
                    "vleak: descend: settings do not match; see vleak.native.descend.step_settings");
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

}  // namespace vleak
