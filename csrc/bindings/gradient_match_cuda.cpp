#include <tuple>

#include "bindings/cuda.h"
#include "bindings/gradient_match.h"

namespace vleak {
namespace {

std::tuple<Tensor, std::vector<Tensor>> call_gradient_match(std::vector<Tensor> gradients,
                                                            std::vector<Tensor> targets,
                                                            std::vector<Tensor> masks, std::string kind) {
  check(!gradients.empty(), "gradient_match: lists differ in length");
  const DeviceGuard guard(gradients[0].get_device_index());
  const MatchLists lists(gradients, targets, masks);
  Tensor distance = new_contiguous(lists.first(), {});
  with_type(lists.first(), [&]<typename T>() {
    const auto tensors = lists.tensors<T>();
    const int64_t count = tensors.size();
    const Tensor scratch = scratch_memory(distance, cuda::match_scratch_bytes(tensors.data(), count));
    cuda::gradient_match(tensors.data(), count, match_kind(kind), scratch.mutable_data_ptr(),
                         distance.mutable_data_ptr<T>(), current_stream(distance));
  });
  check_launch();
  return {distance, lists.residuals};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CUDA, library) {
  library.impl("gradient_match", TORCH_BOX(&vleak::call_gradient_match));
}
