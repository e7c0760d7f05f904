// Convolutions with one kernel a channel, and their two derivatives: the same sums as in convolution.h, with
// as many outputs as channels. The weights are [channel, taps].
#pragma once

#include <algorithm>

#include "kernels/convolution.h"
#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {

// One axis. The padded input is split by its phase in the stride, so that what neighbouring outputs read for
// one tap lies side by side; `length` is that of a phase.
struct ChannelLine {
  int64_t input;
  int64_t output;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t length;
};

// A channel as one line: [frame phase, row phase, column phase, frame, row, column]. Outputs have the pitch
// of a phase too, with entries between the rows that nobody reads, and a tap is one shift for all of them.
struct ChannelLayout {
  std::array<ChannelLine, 3> axes;
  int64_t taps;
  int64_t phase;  // entries of a phase
  int64_t phases;
  int64_t outputs;  // from the first output to behind the last, with the entries between them
  int64_t slack;    // what vectors may read beyond an end
};

inline ChannelLayout plan_layout(const ConvolutionShape& shape, int64_t lanes) {
  ChannelLayout layout{{}, 1, 1, 1, 0, kMaxTileVectors * lanes};
  for (int i = 0; i < 3; ++i) {
    const int64_t kernel = shape.kernel[i], output = shape.output[2 + i];
    // With one output, the stride is not used: every phase of a large one would be copied.
    const int64_t stride = output == 1 ? 1 : shape.stride[i];
    const int64_t length = output - 1 + divide_up(kernel, stride);
    layout.axes[i] = {shape.input[2 + i], output, kernel, stride, shape.padding[i], length};
    layout.taps *= kernel;
    layout.phase *= length;
    layout.phases *= stride;
    layout.outputs = layout.outputs * length + output - 1;
  }
  ++layout.outputs;
  return layout;
}

inline int64_t place(const ChannelLayout& layout, int64_t frame, int64_t row, int64_t column) {
  return (frame * layout.axes[1].length + row) * layout.axes[2].length + column;
}

// Calls act(tap, phase, shift) for every tap.
template <typename Act>
void for_taps(const ChannelLayout& layout, const Act& act) {
  const auto& [time, down, across] = layout.axes;
  int64_t tap = 0;
  for (int64_t t = 0; t < time.kernel; ++t) {
    for (int64_t i = 0; i < down.kernel; ++i) {
      for (int64_t j = 0; j < across.kernel; ++j, ++tap) {
        const int64_t phase =
            (t % time.stride * down.stride + i % down.stride) * across.stride + j % across.stride;
        act(tap, phase, place(layout, t / time.stride, i / down.stride, j / across.stride));
      }
    }
  }
}

// The entries of a phase that lie inside the input.
inline Range inside_input(const ChannelLine& axis, int64_t phase) {
  return inside(phase - axis.padding, axis.stride, axis.input, axis.length);
}

// Calls act(place, frame, row, column, count, phase of columns) for the runs of entries inside the input.
template <typename Act>
void for_inputs(const ChannelLayout& layout, const Act& act) {
  const auto& [time, down, across] = layout.axes;
  for (int64_t phase = 0; phase < layout.phases; ++phase) {
    const int64_t in_row = phase % across.stride, in_column = phase / across.stride % down.stride;
    const int64_t in_time = phase / across.stride / down.stride;
    const Range frames = inside_input(time, in_time), rows = inside_input(down, in_column),
                columns = inside_input(across, in_row);
    if (columns.begin == columns.end) continue;
    for (int64_t t = frames.begin; t < frames.end; ++t) {
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        act(phase * layout.phase + place(layout, t, i, columns.begin),
            t * time.stride + in_time - time.padding, i * down.stride + in_column - down.padding,
            columns.begin * across.stride + in_row - across.padding, columns.end - columns.begin);
      }
    }
  }
}

template <typename T>
const T* channel_of(const View<const T>& view, int64_t image, int64_t channel) {
  return view.data + image * view.strides[0] + channel * view.strides[1];
}

// Copies a channel of an input; the entries around it are 0 already.
template <typename T>
void copy_input(const ChannelLayout& layout, const View<const T>& x, int64_t image, int64_t channel,
                T* line) {
  const T* from = channel_of(x, image, channel);
  const int64_t step = layout.axes[2].stride * x.strides[4];
  for_inputs(layout, [&](int64_t to, int64_t frame, int64_t row, int64_t column, int64_t count) {
    const T* at = from + frame * x.strides[2] + row * x.strides[3] + column * x.strides[4];
    if (step == 1)
      std::copy_n(at, count, line + to);
    else
      for (int64_t i = 0; i < count; ++i) line[to + i] = at[i * step];
  });
}

// Copies a channel of an output; the entries between the rows are 0 already.
template <typename T>
void copy_output(const ChannelLayout& layout, const View<const T>& dy, int64_t image, int64_t channel,
                 T* line) {
  const T* from = channel_of(dy, image, channel);
  const auto& [time, down, across] = layout.axes;
  for (int64_t t = 0; t < time.output; ++t) {
    for (int64_t i = 0; i < down.output; ++i) {
      const T* at = from + t * dy.strides[2] + i * dy.strides[3];
      T* to = line + place(layout, t, i, 0);
      for (int64_t j = 0; j < across.output; ++j) to[j] = at[j * dy.strides[4]];
    }
  }
}

// to[i] = start + sum over k of factors[k] * from[offsets[k] + i], for i < count and up to a vector more
template <typename T>
void add_shifted(const std::vector<T>& factors, const T* from, const std::vector<int64_t>& offsets,
                 int64_t count, T start, T* to) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const int64_t lanes = kernels.tile_limits().lanes;
  int64_t side_by_side[kMaxTileVectors];
  for (int64_t v = 0; v < kMaxTileVectors; ++v) side_by_side[v] = v * lanes;
  for (int64_t at = 0; at < count; at += kMaxTileVectors * lanes) {
    const int64_t vectors = std::min(kMaxTileVectors, divide_up(count - at, lanes));
    kernels.tile(1, vectors)(factors.data(), from + at, offsets.data(), offsets.size(), side_by_side, &start,
                             to + at, 0, side_by_side);
  }
}

inline int64_t grain(const ChannelLayout& layout, int64_t pairs) {
  return grain_of(kSumGrain, pairs * layout.taps * layout.phase * layout.phases);
}

template <typename T>
void depthwise_output(const std::vector<View<const T>>& xs, const std::vector<const T*>& ws, const T* bias,
                      const ConvolutionShape& shape, T* y) {
  const ChannelLayout layout = plan_layout(shape, cpu_kernels<T>().tile_limits().lanes);
  const int64_t pairs = xs.size(), channels = shape.input[1],
                line = layout.phases * layout.phase + layout.slack;
  std::vector<int64_t> offsets(pairs * layout.taps);
  for_taps(layout, [&](int64_t tap, int64_t phase, int64_t shift) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      offsets[pair * layout.taps + tap] = pair * line + phase * layout.phase + shift;
    }
  });
  const auto& [time, down, across] = layout.axes;
  parallel_for(shape.input[0] * channels, grain(layout, pairs), [&](int64_t begin, int64_t end) {
    std::vector<T> lines(pairs * line), sums(layout.outputs + layout.slack), factors(offsets.size());
    for (int64_t at = begin; at < end; ++at) {
      const int64_t channel = at % channels;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        copy_input(layout, xs[pair], at / channels, channel, lines.data() + pair * line);
        std::copy_n(ws[pair] + channel * layout.taps, layout.taps, factors.data() + pair * layout.taps);
      }
      add_shifted(factors, lines.data(), offsets, layout.outputs, bias ? bias[channel] : T(0), sums.data());
      T* to = y + at * time.output * down.output * across.output;
      for (int64_t t = 0; t < time.output; ++t) {
        for (int64_t i = 0; i < down.output; ++i, to += across.output) {
          std::copy_n(sums.data() + place(layout, t, i, 0), across.output, to);
        }
      }
    }
  });
}

template <typename T>
void depthwise_input(const std::vector<View<const T>>& dys, const std::vector<const T*>& ws,
                     const ConvolutionShape& shape, T* dx) {
  const ChannelLayout layout = plan_layout(shape, cpu_kernels<T>().tile_limits().lanes);
  const int64_t pairs = dys.size(), channels = shape.input[1], entries = layout.phase * layout.phases;
  // A tap reads the outputs as many entries before as its shift; those before the first output are 0.
  int64_t before = 0;
  for_taps(layout, [&](int64_t, int64_t, int64_t shift) { before = std::max(before, shift); });
  const int64_t line = before + layout.phase + layout.slack;
  std::vector<std::vector<int64_t>> offsets(layout.phases), taps(layout.phases);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    for_taps(layout, [&](int64_t tap, int64_t phase, int64_t shift) {
      offsets[phase].push_back(pair * line + before - shift);
      taps[phase].push_back(tap);
    });
  }
  const auto& [time, down, across] = layout.axes;
  const int64_t a_channel = time.input * down.input * across.input;
  parallel_for(shape.input[0] * channels, grain(layout, pairs), [&](int64_t begin, int64_t end) {
    std::vector<T> lines(pairs * line), sums(entries + layout.slack), factors;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t channel = at % channels;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        copy_output(layout, dys[pair], at / channels, channel, lines.data() + pair * line + before);
      }
      for (int64_t phase = 0; phase < layout.phases; ++phase) {
        factors.clear();
        const int64_t a_pair = taps[phase].size() / pairs;
        for (size_t i = 0; i < taps[phase].size(); ++i) {
          factors.push_back(ws[i / a_pair][channel * layout.taps + taps[phase][i]]);
        }
        add_shifted(factors, lines.data(), offsets[phase], layout.phase, T(0),
                    sums.data() + phase * layout.phase);
      }
      T* to = dx + at * a_channel;
      std::fill_n(to, a_channel, T(0));  // inputs behind the last tap
      for_inputs(layout, [&](int64_t from, int64_t frame, int64_t row, int64_t column, int64_t count) {
        T* first = to + (frame * down.input + row) * across.input + column;
        for (int64_t i = 0; i < count; ++i) first[i * across.stride] = sums[from + i];
      });
    }
  });
}

// xs and dys are contiguous.
template <typename T>
void depthwise_weight(const std::vector<const T*>& xs, const std::vector<const T*>& dys, const T* start,
                      const ConvolutionShape& shape, T* dw) {
  const ChannelLayout layout = plan_layout(shape, cpu_kernels<T>().tile_limits().lanes);
  const int64_t channels = shape.input[1], lanes = cpu_kernels<T>().tile_limits().lanes;
  const int64_t images = xs.size() * shape.input[0];
  std::vector<int64_t> offsets(layout.taps);
  for_taps(layout,
           [&](int64_t tap, int64_t phase, int64_t shift) { offsets[tap] = phase * layout.phase + shift; });
  std::vector<int64_t> steps(divide_up(layout.outputs, lanes));
  for (size_t i = 0; i < steps.size(); ++i) steps[i] = i * lanes;
  parallel_for(channels, grain(layout, images), [&](int64_t begin, int64_t end) {
    std::vector<T> line(layout.phase * layout.phases + layout.slack), sums(layout.outputs + layout.slack);
    for (int64_t channel = begin; channel < end; ++channel) {
      T* to = dw + channel * layout.taps;
      for (int64_t tap = 0; tap < layout.taps; ++tap)
        to[tap] = start ? start[channel * layout.taps + tap] : T(0);
      for (int64_t at = 0; at < images; ++at) {
        const int64_t pair = at / shape.input[0], image = at % shape.input[0];
        copy_input(layout, contiguous_view(xs[pair], shape.input), image, channel, line.data());
        copy_output(layout, contiguous_view(dys[pair], shape.output), image, channel, sums.data());
        cpu_kernels<T>().patch_dots(sums.data(), line.data(), offsets.data(), layout.taps,
                                    {steps.data(), static_cast<int64_t>(steps.size())}, to);
      }
    }
  });
}

}  // namespace vleak
