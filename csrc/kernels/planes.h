// Work on all planes (frames of a channel) of all trials in parallel, for the CPU.
#pragma once

#include <vector>

#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {

// Calls run(begin, end, scratch, partial) for ranges of planes, each range with scratch memory of its own;
// run writes one value per plane to partial. Returns the sum of each trial, added in the order of its planes.
template <typename Run>
std::vector<double> sum_planes(const ClipSize& size, const Run& run) {
  const int64_t planes = frame_size(size) ? size.trials * planes_per_trial(size) : 0;
  std::vector<double> partial(planes), values(size.trials, 0.0);
  parallel_for(planes, grain_of(kCopyGrain, frame_size(size)), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(scratch_doubles(size.width));
    run(begin, end, scratch.data(), partial.data());
  });
  for (int64_t plane = 0; plane < planes; ++plane) values[plane / planes_per_trial(size)] += partial[plane];
  return values;
}

}  // namespace vleak
