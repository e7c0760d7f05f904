#include "bindings/gradient_match.h"

#include <tuple>

namespace vleak {
namespace {

std::tuple<Tensor, std::vector<Tensor>> call_gradient_match(std::vector<Tensor> gradients,
                                                            std::vector<Tensor> targets,
                                                            std::vector<Tensor> masks, std::string kind) {
  const MatchLists lists(gradients, targets, masks);
  Tensor distance = new_contiguous(lists.first(), {});
  with_type(lists.first(), [&]<typename T>() {
    const auto tensors = lists.tensors<T>();
    const MatchResult result =
        vleak::gradient_match(tensors.data(), tensors.size(), match_kind(kind), MatchSums{0.0, 0.0, 0.0});
    *distance.mutable_data_ptr<T>() = static_cast<T>(result.distance);
  });
  return {distance, lists.residuals};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> call_gradient_match_partial(std::vector<Tensor> gradients,
                                                                            std::vector<Tensor> targets,
                                                                            std::vector<Tensor> masks,
                                                                            Tensor sums, std::string kind) {
  const MatchLists lists(gradients, targets, masks);
  check_kind(sums, lists.first(), "sums", ScalarType::Double);
  check(sums.numel() == 3 && sums.is_contiguous(), "sums do not match");
  Tensor distance = new_contiguous(lists.first(), {}), factors = new_contiguous(lists.first(), {2});
  const double* other = sums.const_data_ptr<double>();
  with_type(lists.first(), [&]<typename T>() {
    const auto tensors = lists.tensors<T>();
    const MatchResult result = vleak::gradient_match(tensors.data(), tensors.size(), match_kind(kind),
                                                     MatchSums{other[0], other[1], other[2]});
    *distance.mutable_data_ptr<T>() = static_cast<T>(result.distance);
    factors.mutable_data_ptr<T>()[0] = static_cast<T>(result.of_gradient);
    factors.mutable_data_ptr<T>()[1] = static_cast<T>(result.of_target);
  });
  return {distance, lists.residuals, factors};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CPU, library) {
  library.impl("gradient_match", TORCH_BOX(&vleak::call_gradient_match));
  library.impl("gradient_match_partial", TORCH_BOX(&vleak::call_gradient_match_partial));
}
