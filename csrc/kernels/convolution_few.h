// Convolutions with few outputs and many weights, as products with the unfolded input: packing the weights,
// or the sums of their derivative, would cost more than the sums.
#pragma once

#include "kernels/convolution.h"
#include "kernels/parallel.h"
#include "kernels/product.h"

namespace vleak {

constexpr int64_t kFewOutputs = 64;  // of all clips
constexpr int64_t kManyWeights = 1 << 14;

inline int64_t depth_of(const ConvolutionShape& shape) {
  return shape.input[1] * shape.kernel[0] * shape.kernel[1] * shape.kernel[2];
}

// Calls act(column, frame, row, column of the first tap in a row, first tap, taps) for what one output reads
// of a channel: `taps` entries side by side, which are columns of the unfolded input from `column` on.
template <typename Act>
void for_reads(const ConvolutionShape& shape, int64_t place, const Act& act) {
  const int64_t across = place % shape.output[4], down = place / shape.output[4] % shape.output[3];
  const int64_t time = place / shape.output[4] / shape.output[3];
  const auto& kernel = shape.kernel;
  const int64_t column = across * shape.stride[2] - shape.padding[2];
  const int64_t frame = time * shape.stride[0] - shape.padding[0];
  const int64_t row = down * shape.stride[1] - shape.padding[1];
  const Range frames = inside(frame, 1, shape.input[2], kernel[0]);
  const Range rows = inside(row, 1, shape.input[3], kernel[1]);
  const auto [first, last] = inside(column, 1, shape.input[4], kernel[2]);
  for (int64_t t = frames.begin; t < frames.end; ++t) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      act((t * kernel[1] + i) * kernel[2] + first, frame + t, row + i, column + first, last - first);
    }
  }
}

// to[image, place][channel, tap]: what every output reads; zeros outside the input.
template <typename T>
void unfold(const ConvolutionShape& shape, const View<const T>& x, T* to) {
  const int64_t depth = depth_of(shape), taps = depth / shape.input[1];
  const int64_t places = channel_size(shape.output);
  const int64_t rows = shape.output[0] * places;
  std::fill_n(to, rows * depth, T(0));
  parallel_for(rows, grain_of(kCopyGrain, depth), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      for_reads(shape, at % places,
                [&](int64_t first, int64_t frame, int64_t row, int64_t column, int64_t count) {
                  const T* from = x.data + at / places * x.strides[0] + frame * x.strides[2] +
                                  row * x.strides[3] + column * x.strides[4];
                  T* line = to + at * depth + first;
                  for (int64_t channel = 0; channel < shape.input[1]; ++channel) {
                    for (int64_t j = 0; j < count; ++j) {
                      line[channel * taps + j] = from[channel * x.strides[1] + j * x.strides[4]];
                    }
                  }
                });
    }
  });
}

// Adds what is unfolded to one image of dx.
template <typename T>
void fold(const ConvolutionShape& shape, const T* from, T* dx) {
  const int64_t depth = depth_of(shape), taps = depth / shape.input[1];
  const int64_t a_channel = channel_size(shape.input), places = channel_size(shape.output);
  std::fill_n(dx, shape.input[1] * a_channel, T(0));
  parallel_for(shape.input[1], grain_of(kCopyGrain, places * taps), [&](int64_t begin, int64_t end) {
    for (int64_t place = 0; place < places; ++place) {
      for_reads(shape, place, [&](int64_t first, int64_t frame, int64_t row, int64_t column, int64_t count) {
        T* to = dx + (frame * shape.input[3] + row) * shape.input[4] + column;
        const T* line = from + place * depth + first;
        for (int64_t channel = begin; channel < end; ++channel) {
          for (int64_t j = 0; j < count; ++j) to[channel * a_channel + j] += line[channel * taps + j];
        }
      });
    }
  });
}

// Calls act(channel, image and place, entry) for every output of a view.
template <typename T, typename Act>
void for_outputs(const ConvolutionShape& shape, const View<const T>& dy, const Act& act) {
  const auto& [images, channels, frames, rows, columns] = shape.output;
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t image = 0, at = 0; image < images; ++image) {
      for (int64_t t = 0; t < frames; ++t) {
        for (int64_t i = 0; i < rows; ++i) {
          const T* from = dy.data + image * dy.strides[0] + channel * dy.strides[1] + t * dy.strides[2] +
                          i * dy.strides[3];
          for (int64_t j = 0; j < columns; ++j) act(channel, at++, from[j * dy.strides[4]]);
        }
      }
    }
  }
}

// Whether there are so few outputs, for so many weights, that it pays.
inline bool few_outputs(const ConvolutionShape& shape) {
  const int64_t outputs = shape.output[0] * channel_size(shape.output);
  return 0 < outputs && outputs <= kFewOutputs && shape.output[1] * depth_of(shape) >= kManyWeights;
}

template <typename T>
void few_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                const ConvolutionShape& shape, T* y) {
  const int64_t places = channel_size(shape.output), depth = depth_of(shape), out = shape.output[1];
  const int64_t rows = shape.output[0] * places;
  const auto unfolded = scratch<T>(xs.size() * rows * depth), turned = scratch<T>(rows * out);
  std::vector<ProductPair<T>> pairs;
  for (size_t pair = 0; pair < xs.size(); ++pair) {
    T* to = unfolded.get() + pair * rows * depth;
    unfold(shape, xs[pair], to);
    pairs.push_back({{to, depth}, {ws[pair], depth}, depth, true});
  }
  product(pairs, rows, out, turned.get());
  for (int64_t image = 0; image < shape.output[0]; ++image) {
    for (int64_t channel = 0; channel < out; ++channel) {
      const T start = bias ? bias[channel] : T(0);
      const T* from = turned.get() + image * places * out + channel;
      for (int64_t place = 0; place < places; ++place) *y++ = from[place * out] + start;
    }
  }
}

template <typename T>
void few_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
               const ConvolutionShape& shape, T* dx) {
  const int64_t places = channel_size(shape.output), depth = depth_of(shape), out = shape.output[1];
  const int64_t rows = shape.output[0] * places;
  const int64_t an_image = shape.input[1] * channel_size(shape.input);
  const auto unfolded = scratch<T>(rows * depth), turned = scratch<T>(dys.size() * rows * out);
  std::vector<ProductPair<T>> pairs;
  for (size_t pair = 0; pair < dys.size(); ++pair) {
    T* to = turned.get() + pair * rows * out;
    for_outputs(shape, dys[pair],
                [&](int64_t channel, int64_t row, T entry) { to[row * out + channel] = entry; });
    pairs.push_back({{to, out}, {ws[pair], depth}, out, false});
  }
  product(pairs, rows, depth, unfolded.get());
  for (int64_t image = 0; image < shape.output[0]; ++image) {
    fold(shape, unfolded.get() + image * places * depth, dx + image * an_image);
  }
}

// xs and dys are contiguous.
template <typename T>
void few_weight(const std::vector<const T*>& xs, const std::vector<const T*>& dys, const T* start,
                const ConvolutionShape& shape, T* dw) {
  const int64_t rows = shape.output[0] * channel_size(shape.output), depth = depth_of(shape),
                out = shape.output[1];
  const auto unfolded = scratch<T>(xs.size() * rows * depth), turned = scratch<T>(xs.size() * rows * out);
  std::vector<ProductPair<T>> pairs;
  for (size_t pair = 0; pair < xs.size(); ++pair) {
    T *left = turned.get() + pair * rows * out, *right = unfolded.get() + pair * rows * depth;
    unfold(shape, contiguous_view(xs[pair], shape.input), right);
    for_outputs(shape, contiguous_view(dys[pair], shape.output),
                [&](int64_t channel, int64_t row, T entry) { left[channel * rows + row] = entry; });
    pairs.push_back({{left, rows}, {right, depth}, rows, false});
  }
  product(pairs, out, depth, dw);
  for (int64_t i = 0; start && i < out * depth; ++i) dw[i] += start[i];
}

}  // namespace vleak
