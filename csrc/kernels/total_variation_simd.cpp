#include "kernels/total_variation_rows.h"

namespace vleak::VLEAK_VARIANT {

// begin, end: planes of [N * C * T]; gradient: [N, C, T, H, W]; value: [N * C * T], one sum per plane
template <typename T>
void tv_planes(const T* x /* [N, C, T, H, W] */, const ClipSize& size, const TvSettings& tv, int64_t begin,
               int64_t end, double* scratch, T* gradient, double* value) {
  const TvNumbers<T> numbers = tv_numbers<T>(size, tv);
  const auto finish_row = [&](int64_t offset, const T* row, double*) {
    std::memcpy(gradient + offset, row, sizeof(T) * size.width);
  };
  for (int64_t plane = begin; plane < end; ++plane) {
    value[plane] = tv_plane(x, plane, size, tv, numbers, scratch, finish_row);
  }
}

template void tv_planes<float>(const float*, const ClipSize&, const TvSettings&, int64_t, int64_t, double*,
                               float*, double*);
template void tv_planes<double>(const double*, const ClipSize&, const TvSettings&, int64_t, int64_t, double*,
                                double*, double*);

}  // namespace vleak::VLEAK_VARIANT
