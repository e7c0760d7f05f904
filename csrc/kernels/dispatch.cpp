#include "kernels/dispatch.h"

#include <atomic>
#include <cstring>

#define VLEAK_CPU_KERNELS(variant) \
  {variant::match_sums<T>,         \
   variant::match_residuals<T>,    \
   variant::tv_planes<T>,          \
   variant::descend_planes<T>,     \
   variant::tile<T>,               \
   variant::patch_dots<T>,         \
   variant::patch_sums<T>,         \
   variant::split_line<T>,         \
   variant::winograd_input<T>,     \
   variant::winograd_output<T>,    \
   variant::pool_row<T>,           \
   variant::channel_sums<T>,       \
   variant::combine<T>,            \
   variant::norm_row<T>,           \
   variant::norm_row_backward<T>,  \
   variant::norm_row_second<T>,    \
   variant::activation_slopes<T>,  \
   variant::activation_bends<T>,   \
   variant::softmax_row<T>,        \
   variant::block_product<T>,      \
   variant::row_product<T>,        \
   variant::tile_limits<T>}

namespace vleak {
namespace {

#ifdef VLEAK_BASELINE_ONLY
constexpr const char* kNames[] = {"baseline"};
template <typename T>
constexpr CpuKernels<T> kKernels[] = {VLEAK_CPU_KERNELS(baseline)};

bool supported(int) { return true; }
#else
constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
template <typename T>
constexpr CpuKernels<T> kKernels[] = {VLEAK_CPU_KERNELS(baseline), VLEAK_CPU_KERNELS(avx2),
                                      VLEAK_CPU_KERNELS(avx512)};

bool supported(int level) {
  if (level == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level == 2) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return true;
}
#endif

constexpr int kLevels = sizeof(kNames) / sizeof(kNames[0]);

int best_level() {
  int level = kLevels - 1;
  while (!supported(level)) --level;
  return level;
}

std::atomic<int>& level() {
  static std::atomic<int> chosen{best_level()};
  return chosen;
}

}  // namespace

template <typename T>
const CpuKernels<T>& cpu_kernels() {
  return kKernels<T>[level().load(std::memory_order_relaxed)];
}

template const CpuKernels<float>& cpu_kernels<float>();
template const CpuKernels<double>& cpu_kernels<double>();

}  // namespace vleak

extern "C" __attribute__((visibility("default"))) const char* vleak_instruction_set() {
  return vleak::kNames[vleak::level().load()];
}

extern "C" __attribute__((visibility("default"))) bool vleak_use_instruction_set(const char* name) {
  for (int candidate = 0; candidate < vleak::kLevels; ++candidate) {
    if (std::strcmp(name, vleak::kNames[candidate]) == 0 && vleak::supported(candidate)) {
      vleak::level().store(candidate);
      return true;
    }
  }
  return false;
}
