#include "kernels/total_variation.h"

#include "kernels/planes.h"

namespace vleak {

template <typename T>
void total_variation(const T* x, const ClipSize& size, const TvSettings& tv, T* gradient, T* value) {
  const auto values = sum_planes(size, [&](int64_t begin, int64_t end, double* scratch, double* partial) {
    cpu_kernels<T>().tv_planes(x, size, tv, begin, end, scratch, gradient, partial);
  });
  std::copy(values.begin(), values.end(), value);
}

template void total_variation<float>(const float*, const ClipSize&, const TvSettings&, float*, float*);
template void total_variation<double>(const double*, const ClipSize&, const TvSettings&, double*, double*);

}  // namespace vleak
