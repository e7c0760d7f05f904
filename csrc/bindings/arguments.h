// What the CPU and CUDA bindings share: reading arguments that vleak/ops.py has checked for the user.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/descend.h"
#include "kernels/gradient_match.h"

namespace vleak {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An argument that is changed in place: worked on as contiguous memory, written back if that was a copy.
class InPlace {
 public:
  explicit InPlace(const Tensor& tensor)
      : original_(tensor),
        copied_(!tensor.is_contiguous()),
        work_(copied_ ? torch::stable::contiguous(tensor) : tensor) {}

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

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::vector<Tensor> dense(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  result.reserve(tensors.size());
  for (const Tensor& tensor : tensors) result.push_back(dense(tensor));
  return result;
}

inline Tensor new_contiguous(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
}

inline Tensor new_contiguous(const Tensor& like) {
  const auto sizes = like.sizes();
  return new_contiguous(like, std::vector<int64_t>(sizes.begin(), sizes.end()));
}

inline std::vector<Tensor> new_contiguous_each(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  result.reserve(tensors.size());
  for (const Tensor& tensor : tensors) result.push_back(new_contiguous(tensor));
  return result;
}

// These hold for every call through vleak.ops; a direct call of the operator must fail too, not crash.
inline void check_like(const Tensor& tensor, const Tensor& like, const char* name, bool same_size = true) {
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device() &&
                      (!same_size || tensor.numel() == like.numel()),
                  "vleak: ", name, " does not match; call the function in vleak.ops, which says why");
}

inline void check_lists(const std::vector<Tensor>& gradients, const std::vector<Tensor>& targets,
                        const std::vector<Tensor>& masks) {
  STD_TORCH_CHECK(!gradients.empty() && targets.size() == gradients.size() &&
                      (masks.empty() || masks.size() == gradients.size()),
                  "vleak: gradient_match: lists differ in length");
  for (size_t i = 0; i < gradients.size(); ++i) {
    check_like(gradients[i], gradients[0], "gradients", false);
    check_like(targets[i], gradients[i], "targets");
    if (masks.empty()) continue;
    STD_TORCH_CHECK(masks[i].scalar_type() == ScalarType::Bool && masks[i].numel() == gradients[i].numel() &&
                        masks[i].device() == gradients[i].device(),
                    "vleak: gradient_match: masks do not match");
  }
}

inline ClipSize clip_size(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 5, "vleak: expected five axes (clip, channel, frame, height, width)");
  return {x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)};
}

inline MatchKind match_kind(const std::string& name) {
  STD_TORCH_CHECK(name == "cosine" || name == "l2", "vleak: unknown kind ", name);
  return name == "l2" ? MatchKind::kL2 : MatchKind::kCosine;
}

inline Rule rule_of(const std::string& name) {
  STD_TORCH_CHECK(name == "adam" || name == "sign" || name == "sign_adam", "vleak: unknown rule ", name);
  return name == "adam" ? Rule::kAdam : name == "sign" ? Rule::kSign : Rule::kSignAdam;
}

// The tensors of one descend call as contiguous memory, and its two results.
struct State {
  ClipSize size;
  Tensor x, data_gradient, distance, numbers;
  std::optional<Tensor> prior;
  InPlace m, v, best, best_objective;
  Tensor moved, objective;

  State(const Tensor& x_, const Tensor& data_gradient_, const Tensor& distance_, const Tensor& m_,
        const Tensor& v_, const Tensor& best_, const Tensor& best_objective_,
        const std::optional<Tensor>& prior_, const Tensor& settings)
      : size(clip_size(x_)),
        x(dense(x_)),
        data_gradient(dense(data_gradient_)),
        distance(dense(distance_)),
        numbers(dense(settings)),
        m(m_),
        v(v_),
        best(best_),
        best_objective(best_objective_),
        moved(new_contiguous(x_)),
        objective(new_contiguous(x_, {size.trials})) {
    if (prior_.has_value()) prior = dense(*prior_);
    check();
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
  void check() const {
    STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Double && numbers.numel() == kStepNumbers &&
                        numbers.device() == x.device(),
                    "vleak: descend: settings do not match; see vleak.ops.step_settings");
    check_like(data_gradient, x, "data_gradient");
    check_like(m.tensor(), x, "m");
    check_like(v.tensor(), x, "v");
    check_like(best.tensor(), x, "best");
    check_like(distance, objective, "distance");
    check_like(best_objective.tensor(), objective, "best_objective");
    if (!prior.has_value()) return;
    const bool one_for_all =
        prior->dim() == 5 && prior->size(0) == 1 && prior->numel() * size.trials == x.numel();
    check_like(*prior, one_for_all ? *prior : x, "prior");
    STD_TORCH_CHECK(prior->scalar_type() == x.scalar_type(), "vleak: prior does not match");
  }
};

// Calls run(T()) for the tensor's type.
template <typename Run>
void with_type(const Tensor& tensor, Run run) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "vleak: expected float32 or float64");
  if (type == ScalarType::Float) {
    run(float());
  } else {
    run(double());
  }
}

}  // namespace vleak
