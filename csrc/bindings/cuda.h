// Device, stream and scratch memory, shared by the CUDA bindings.
#pragma once

#include <cuda_runtime_api.h>

#include "bindings/arguments.h"
#include "kernels/cuda.h"

namespace vleak {

using torch::stable::accelerator::DeviceGuard;

inline cuda::Stream current_stream(const Tensor& on) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cuda::Stream>(stream);
}

inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "vleak: CUDA: ", cudaGetErrorString(error));
}

// Device memory that lives as long as the returned tensor.
inline Tensor scratch_memory(const Tensor& like, int64_t bytes) {
  return new_contiguous(like, {bytes / 8 + 1}, ScalarType::Double);
}

}  // namespace vleak
