#include "kernels/batch_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {
namespace {

// Calls run(channel) for every channel.
template <typename Run>
void each_channel(const ChannelShape& shape, const Run& run) {
  const int64_t cost = shape.clips * shape.entries;
  parallel_for(shape.channels, grain_of(kCopyGrain, cost), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) run(channel);
  });
}

// Calls run(first entry) for every clip's part of a channel.
template <typename Run>
void each_plane(const ChannelShape& shape, int64_t channel, const Run& run) {
  for (int64_t clip = 0; clip < shape.clips; ++clip) {
    run((clip * shape.channels + channel) * shape.entries);
  }
}

template <typename T>
ChannelSums sums_of(const ChannelShape& shape, int64_t channel, const T* x, T shift, const T* dy,
                    const T* u) {
  ChannelSums sums{};
  each_plane(shape, channel, [&](int64_t at) {
    cpu_kernels<T>().channel_sums(x + at, shift, dy == nullptr ? nullptr : dy + at,
                                  u == nullptr ? nullptr : u + at, shape.entries, sums);
  });
  return sums;
}

double entries_of(const ChannelShape& shape) {
  return static_cast<double>(std::max<int64_t>(1, shape.clips * shape.entries));
}

// Means over a channel, of dy and of what it is multiplied by. x is normalised here.
struct Means {
  double dy, xdy, u, xu, udy;
};

Means means_of(const ChannelSums& sums, double scale, double count) {
  return {sums.dy / count, scale * sums.xdy / count, sums.u / count, scale * sums.xu / count,
          sums.udy / count};
}

}  // namespace

template <typename T>
void batch_statistics(const T* x, const ChannelShape& shape, double eps, T* mean, T* scale) {
  const double count = entries_of(shape);
  each_channel(shape, [&](int64_t channel) {
    const T* none = nullptr;
    const T middle = static_cast<T>(sums_of(shape, channel, x, T(0), none, none).x / count);
    const ChannelSums sums = sums_of(shape, channel, x, middle, none, none);
    const double left = sums.x / count;  // what rounding has left of the mean
    mean[channel] = static_cast<T>(middle + left);
    scale[channel] = static_cast<T>(1 / std::sqrt(sums.xx / count - left * left + eps));
  });
}

template <typename T>
void batch_norm(const T* x, const Normal<T>& normal, const T* bias, const ChannelShape& shape, T* y) {
  each_channel(shape, [&](int64_t channel) {
    const double factor = static_cast<double>(normal.weight[channel]) * normal.scale[channel];
    const Combination<T> output{{x}, {factor}, bias[channel] - factor * normal.mean[channel], y};
    each_plane(shape, channel, [&](int64_t at) { cpu_kernels<T>().combine(output, 1, at, shape.entries); });
  });
}

template <typename T>
void batch_norm_backward(const T* dy, const T* x, const Normal<T>& normal, const ChannelShape& shape, T* dx,
                         T* dweight, T* dbias) {
  const double count = entries_of(shape);
  each_channel(shape, [&](int64_t channel) {
    const T* none = nullptr;
    const double scale = normal.scale[channel], factor = scale * normal.weight[channel];
    const ChannelSums sums = sums_of(shape, channel, x, normal.mean[channel], dy, none);
    const Means means = means_of(sums, scale, count);
    dweight[channel] = static_cast<T>(count * means.xdy);
    dbias[channel] = static_cast<T>(sums.dy);
    // factor * (dy - mean of dy - normalised x * means.xdy)
    const double of_x = -factor * scale * means.xdy;
    const Combination<T> output{
        {dy, x}, {factor, of_x}, -factor * means.dy - of_x * normal.mean[channel], dx};
    const Combination<T> constant{{dy}, {factor}, 0, dx};
    each_plane(shape, channel, [&](int64_t at) {
      if (normal.train)
        cpu_kernels<T>().combine(output, 2, at, shape.entries);
      else
        cpu_kernels<T>().combine(constant, 1, at, shape.entries);
    });
  });
}

template <typename T>
void batch_norm_second(const Slopes<T>& slopes, const T* dy, const T* x, const Normal<T>& normal,
                       const ChannelShape& shape, T* by_dy, T* by_x, T* by_weight) {
  const double count = entries_of(shape);
  each_channel(shape, [&](int64_t channel) {
    const double mean = normal.mean[channel], scale = normal.scale[channel];
    const double factor = scale * normal.weight[channel], slope = slopes.weight[channel];
    const ChannelSums sums = sums_of(shape, channel, x, normal.mean[channel], dy, slopes.x);
    Means means = means_of(sums, scale, count);
    if (!normal.train) means = {0, 0, 0, 0, means.udy};  // nothing depends on the mean and the deviation
    // dx = factor * (dy - means.dy - normalised x * means.xdy), so <u, dx> = factor * count * spread.
    const double spread = means.udy - means.dy * means.u - means.xdy * means.xu;
    by_weight[channel] = static_cast<T>(scale * count * spread);
    const double shared = scale * (slope - factor * means.xu);
    const Combination<T> first{
        {slopes.x, x}, {factor, shared}, slopes.bias[channel] - factor * means.u - shared * mean, by_dy};
    const double bent = factor * (spread - 2 * means.xdy * means.xu) + slope * means.xdy;
    const double of_x = normal.train ? -scale * scale * bent : 0;
    const double of_u = -factor * scale * means.xdy;
    const Combination<T> second{
        {dy, x, slopes.x}, {shared, of_x, of_u}, -shared * means.dy - of_u * means.u - of_x * mean, by_x};
    each_plane(shape, channel, [&](int64_t at) {
      cpu_kernels<T>().combine(first, 2, at, shape.entries);
      cpu_kernels<T>().combine(second, normal.train ? 3 : 1, at, shape.entries);
    });
  });
}

#define VLEAK_BATCH_NORM(T)                                                                               \
  template void batch_statistics<T>(const T*, const ChannelShape&, double, T*, T*);                       \
  template void batch_norm<T>(const T*, const Normal<T>&, const T*, const ChannelShape&, T*);             \
  template void batch_norm_backward<T>(const T*, const T*, const Normal<T>&, const ChannelShape&, T*, T*, \
                                       T*);                                                               \
  template void batch_norm_second<T>(const Slopes<T>&, const T*, const T*, const Normal<T>&,              \
                                     const ChannelShape&, T*, T*, T*);

VLEAK_BATCH_NORM(float)
VLEAK_BATCH_NORM(double)

}  // namespace vleak
