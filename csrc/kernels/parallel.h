// Work spread over threads. The bindings define parallel_ranges on torch's thread pool
// (bindings/parallel.cpp), so that the kernels need no torch header.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

namespace vleak {

// Calls run(begin, end, context) for ranges that together cover [0, count). A range has at least `grain`
// entries unless it is the last one.
void parallel_ranges(int64_t count, int64_t grain, void (*run)(int64_t, int64_t, void*), void* context);

template <typename Run>
void parallel_for(int64_t count, int64_t grain, const Run& run) {
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Run*>(context))(begin, end);
  };
  parallel_ranges(count, grain, call, const_cast<void*>(static_cast<const void*>(&run)));
}

// Entries copied, or products added, that are worth waking a thread for.
constexpr int64_t kCopyGrain = 32768;
constexpr int64_t kSumGrain = 1 << 20;

// Pieces a thread should take: `worth` over the cost of one piece.
inline int64_t grain_of(int64_t worth, int64_t cost) {
  return std::max<int64_t>(1, worth / std::max<int64_t>(1, cost));
}

// Uninitialised scratch memory. A tensor would cost a call of torch's dispatcher.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t entries) {
  return std::unique_ptr<T[]>(new T[entries]);
}

}  // namespace vleak
