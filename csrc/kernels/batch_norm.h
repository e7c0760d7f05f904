// Batch norm of (clip, channel, entry), its derivative, and the derivative of that. In train mode a channel
// is normalised by its own mean and deviation, otherwise by numbers that are constants.
//
// Sums of a channel are taken in blocks: of vectors inside a block, in double between blocks. No result
// depends on the number of threads.
#pragma once

#include "kernels/common.h"

namespace vleak {

struct ChannelShape {
  int64_t clips;
  int64_t channels;
  int64_t entries;  // of a channel of a clip
};

// What normalises a channel. scale is 1 / sqrt(variance + eps).
template <typename T>
struct Normal {
  const T* mean;    // [channels]
  const T* scale;   // [channels]
  const T* weight;  // [channels]
  bool train;
};

// x: [clips, channels, entries]; mean, scale: [channels]
template <typename T>
void batch_statistics(const T* x, const ChannelShape& shape, double eps, T* mean, T* scale);

// y = weight * scale * (x - mean) + bias
template <typename T>
void batch_norm(const T* x, const Normal<T>& normal, const T* bias, const ChannelShape& shape, T* y);

// The derivatives of <dy, y> by x, weight and bias.
template <typename T>
void batch_norm_backward(const T* dy, const T* x, const Normal<T>& normal, const ChannelShape& shape, T* dx,
                         T* dweight, T* dbias);

// Factors of what batch_norm_backward returns, constants here.
template <typename T>
struct Slopes {
  const T* x;       // [clips, channels, entries]
  const T* weight;  // [channels]
  const T* bias;    // [channels]
};

// The derivatives of <slopes.x, dx> + <slopes.weight, dweight> + <slopes.bias, dbias> by dy, x and weight.
template <typename T>
void batch_norm_second(const Slopes<T>& slopes, const T* dy, const T* x, const Normal<T>& normal,
                       const ChannelShape& shape, T* by_dy, T* by_x, T* by_weight);

// Sums over entries of x - shift, dy and u, and of their products. Those of a null pointer are not taken.
struct ChannelSums {
  double x, xx, dy, xdy, u, xu, udy;
};

// to = constant + sum over k of factors[k] * from[k]; all of the shape of x
template <typename T>
struct Combination {
  const T* from[3];
  double factors[3];
  double constant;
  T* to;
};

}  // namespace vleak
