// CUDA implementations of the operators that vleak/ops.py declares.
#include "kernels/cuda.h"

#include <cuda_runtime_api.h>

#include <tuple>

#include "bindings/arguments.h"

namespace vleak {
namespace {

using torch::stable::accelerator::DeviceGuard;

cuda::Stream current_stream(const Tensor& on) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cuda::Stream>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "vleak: CUDA: ", cudaGetErrorString(error));
}

// Device memory that lives as long as the tensor returned.
Tensor scratch(const Tensor& like, int64_t bytes) {
  const std::vector<int64_t> sizes = {bytes / 8 + 1};
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()),
                                  ScalarType::Double);
}

template <typename T>
std::vector<cuda::MatchGroup<T>> cut_groups(const std::vector<Tensor>& gradients,
                                            const std::vector<Tensor>& targets,
                                            const std::vector<Tensor>& masks,
                                            const std::vector<Tensor>& residuals) {
  std::vector<cuda::MatchGroup<T>> groups;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (i % cuda::kGroup == 0) groups.push_back({});
    cuda::MatchGroup<T>& group = groups.back();
    const int64_t count = gradients[i].numel();
    group.tensors[group.count] = {gradients[i].const_data_ptr<T>(), targets[i].const_data_ptr<T>(),
                                  masks.empty() ? nullptr : masks[i].const_data_ptr<bool>(),
                                  residuals[i].mutable_data_ptr<T>(), count};
    group.first_block[group.count + 1] = group.first_block[group.count] + cuda::blocks_for(count);
    ++group.count;
  }
  return groups;
}

template <typename T>
void match(const std::vector<cuda::MatchGroup<T>>& groups, MatchKind kind, const Tensor& distance) {
  const cuda::Stream stream = current_stream(distance);
  int64_t blocks = 0;
  for (const auto& group : groups) blocks += group.first_block[group.count];
  const Tensor sums_memory = scratch(distance, blocks * sizeof(MatchSums));
  const Tensor result_memory = scratch(distance, sizeof(MatchResult));
  auto* sums = static_cast<MatchSums*>(sums_memory.mutable_data_ptr());
  auto* result = static_cast<MatchResult*>(result_memory.mutable_data_ptr());
  int64_t first = 0;
  for (const auto& group : groups) {
    cuda::match_sums(group, kind, sums + first, stream);
    first += group.first_block[group.count];
  }
  cuda::match_finish(sums, blocks, kind, result, distance.mutable_data_ptr<T>(), stream);
  for (const auto& group : groups) cuda::match_residuals(group, result, stream);
  check_launch();
}

std::tuple<Tensor, std::vector<Tensor>> gradient_match(std::vector<Tensor> gradients,
                                                       std::vector<Tensor> targets, std::vector<Tensor> masks,
                                                       std::string kind) {
  check_lists(gradients, targets, masks);
  const DeviceGuard guard(gradients[0].get_device_index());
  gradients = dense(gradients);
  targets = dense(targets);
  masks = dense(masks);
  const std::vector<Tensor> residuals = new_contiguous_each(gradients);
  Tensor distance = new_contiguous(gradients[0], {});
  with_type(gradients[0], [&](auto zero) {
    using T = decltype(zero);
    match(cut_groups<T>(gradients, targets, masks, residuals), match_kind(kind), distance);
  });
  return {distance, residuals};
}

std::tuple<Tensor, Tensor> total_variation(Tensor x, double spatial, double temporal, bool isotropic,
                                           double smoothing) {
  const ClipSize size = clip_size(x);
  const DeviceGuard guard(x.get_device_index());
  x = dense(x);
  Tensor value = new_contiguous(x, {size.trials}), gradient = new_contiguous(x);
  const Tensor partial = scratch(x, cuda::plane_blocks(size) * sizeof(double));
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    cuda::total_variation(x.const_data_ptr<T>(), size, {spatial, temporal, smoothing, isotropic},
                          partial.mutable_data_ptr<double>(), gradient.mutable_data_ptr<T>(),
                          value.mutable_data_ptr<T>(), current_stream(x));
  });
  check_launch();
  return {value, gradient};
}

std::tuple<Tensor, Tensor> descend(Tensor x, Tensor data_gradient, Tensor distance, Tensor m, Tensor v,
                                   Tensor best, Tensor best_objective, std::optional<Tensor> prior,
                                   Tensor settings, bool isotropic, double smoothing, std::string rule) {
  const DeviceGuard guard(x.get_device_index());
  State state(x, data_gradient, distance, m, v, best, best_objective, prior, settings);
  const cuda::StepRow row = {state.numbers.const_data_ptr<double>(), isotropic, smoothing, rule_of(rule)};
  const ClipSize& size = state.size;
  const Tensor partial = scratch(x, cuda::plane_blocks(size) * sizeof(double)),
               better = scratch(x, size.trials);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    cuda::descend(state.trials<T>(), row, state.distance.const_data_ptr<T>(),
                  partial.mutable_data_ptr<double>(), static_cast<bool*>(better.mutable_data_ptr()),
                  state.objective.mutable_data_ptr<T>(), state.best.data<T>(), state.best_objective.data<T>(),
                  current_stream(x));
  });
  check_launch();
  state.write_back();
  return {state.moved, state.objective};
}

}  // namespace
}  // namespace vleak

STABLE_TORCH_LIBRARY_IMPL(vleak, CUDA, library) {
  library.impl("gradient_match", TORCH_BOX(&vleak::gradient_match));
  library.impl("total_variation", TORCH_BOX(&vleak::total_variation));
  library.impl("descend", TORCH_BOX(&vleak::descend));
}
