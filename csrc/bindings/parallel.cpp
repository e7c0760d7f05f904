// Threads for the kernels: those of torch.
#include "kernels/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace vleak {

void parallel_ranges(int64_t count, int64_t grain, void (*run)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { run(begin, end, context); });
}

}  // namespace vleak
