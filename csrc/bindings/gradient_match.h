// Arguments of gradient_match, on the CPU and on CUDA.
#pragma once

#include "bindings/arguments.h"
#include "kernels/gradient_match.h"

namespace vleak {

inline MatchKind match_kind(const std::string& name) {
  check(name == "cosine" || name == "l2", "unknown kind ", name);
  return name == "l2" ? MatchKind::kL2 : MatchKind::kCosine;
}

// The lists of one call as contiguous memory, and the residuals to be written.
struct MatchLists {
  std::vector<Tensor> gradients, targets, masks, residuals;

  MatchLists(const std::vector<Tensor>& gradients_, const std::vector<Tensor>& targets_,
             const std::vector<Tensor>& masks_)
      : gradients(as_contiguous(gradients_)), targets(as_contiguous(targets_)), masks(as_contiguous(masks_)) {
    check(!gradients.empty() && targets.size() == gradients.size() &&
              (masks.empty() || masks.size() == gradients.size()),
          "gradient_match: lists differ in length");
    for (size_t i = 0; i < gradients.size(); ++i) {
      check_kind(gradients[i], first(), "gradients");
      check_like(targets[i], gradients[i], "targets");
      if (!masks.empty()) check_like(masks[i], gradients[i], "masks", ScalarType::Bool);
      residuals.push_back(new_contiguous(gradients[i]));
    }
  }

  const Tensor& first() const { return gradients[0]; }

  template <typename T>
  std::vector<MatchTensor<T>> tensors() const {
    std::vector<MatchTensor<T>> result;
    for (size_t i = 0; i < gradients.size(); ++i) {
      result.push_back({gradients[i].const_data_ptr<T>(), targets[i].const_data_ptr<T>(),
                        masks.empty() ? nullptr : masks[i].const_data_ptr<bool>(),
                        residuals[i].mutable_data_ptr<T>(), gradients[i].numel()});
    }
    return result;
  }
};

}  // namespace vleak
