#include "kernels/sparse_convolution.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/parallel.h"
#include "kernels/transpose.h"

namespace vleak {
namespace {

// The padded input, channels last: [frame, row, column, channel], rows filled up to whole vectors. What an
// output reads of it is its patch: one line of kernel columns times channels for every kernel frame and row.
struct Layout {
  ConvolutionShape shape;
  int64_t channels;
  int64_t row;    // entries of a row of the padded input
  int64_t frame;  // and of a frame
  int64_t line;   // entries of a line
  int64_t lanes;
  int64_t line_vectors;
  std::vector<int64_t> steps;   // where the vectors of a patch begin, frame by frame of the kernel
  std::vector<int64_t> starts;  // where the patch of every output begins

  int64_t frames() const { return shape.input[2] + 2 * shape.padding[0]; }
  // What vectors may reach beyond an end.
  int64_t slack() const { return line_vectors * lanes; }
  int64_t patch() const { return steps.size() * lanes; }
  int64_t a_clip() const { return shape.input[1] * channel_size(shape.input); }
};

Layout plan_layout(const ConvolutionShape& shape, int64_t lanes) {
  Layout layout{};
  layout.shape = shape;
  layout.channels = shape.input[1];
  layout.lanes = lanes;
  layout.row = round_up((shape.input[4] + 2 * shape.padding[2]) * layout.channels, lanes);
  layout.frame = (shape.input[3] + 2 * shape.padding[1]) * layout.row;
  layout.line = shape.kernel[2] * layout.channels;
  layout.line_vectors = divide_up(layout.line, lanes);
  for (int64_t t = 0; t < shape.kernel[0]; ++t) {
    for (int64_t i = 0; i < shape.kernel[1]; ++i) {
      for (int64_t v = 0; v < layout.line_vectors; ++v) {
        layout.steps.push_back(t * layout.frame + i * layout.row + v * lanes);
      }
    }
  }
  const auto& [clips, outs, frames, rows, columns] = shape.output;
  layout.starts.reserve(frames * rows * columns);
  for (int64_t t = 0; t < frames; ++t) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = t * shape.stride[0] * layout.frame + i * shape.stride[1] * layout.row;
      for (int64_t j = 0; j < columns; ++j) {
        layout.starts.push_back(row + j * shape.stride[2] * layout.channels);
      }
    }
  }
  return layout;
}

// Entry of the padded input, channels last, at which the input's row begins.
int64_t start_of_row(const Layout& layout, int64_t frame, int64_t row) {
  const auto& padding = layout.shape.padding;
  return (frame + padding[0]) * layout.frame + (row + padding[1]) * layout.row + padding[2] * layout.channels;
}

// Copies one clip of an input; the entries around it are 0 already.
template <typename T>
void copy_input(const Layout& layout, const T* x, T* to) {
  const auto& [clips, channels, frames, rows, columns] = layout.shape.input;
  parallel_for(frames * rows, grain_of(kCopyGrain, columns * channels), [&](int64_t begin, int64_t end) {
    std::vector<const T*> lines(channels);
    for (int64_t at = begin; at < end; ++at) {
      for (int64_t c = 0; c < channels; ++c) lines[c] = x + (c * frames * rows + at) * columns;
      T* line = to + start_of_row(layout, at / rows, at % rows);
      transpose(lines.data(), channels, columns, line, channels);
    }
  });
}

// Copies frames of one clip of the derivative by the input.
template <typename T>
void copy_frame(const Layout& layout, const T* from, int64_t frame, T* dx) {
  const auto& [clips, channels, frames, rows, columns] = layout.shape.input;
  for (int64_t row = 0; row < rows; ++row) {
    const T* line = from + start_of_row(layout, -layout.shape.padding[0], row);
    for (int64_t c = 0; c < channels; ++c) {
      T* to = dx + ((c * frames + frame) * rows + row) * columns;
      for (int64_t j = 0; j < columns; ++j) to[j] = line[j * channels + c];
    }
  }
}

int64_t lines_of(const Layout& layout) { return layout.shape.kernel[0] * layout.shape.kernel[1]; }

// The weights of all output channels as [out, line, column, channel], with zeros behind the end of a line.
template <typename T>
std::vector<T> packed(const Layout& layout, const T* w) {
  const int64_t columns = layout.shape.kernel[2], lines = lines_of(layout), channels = layout.channels;
  std::vector<T> to(layout.shape.output[1] * layout.patch());
  std::vector<const T*> rows(channels);
  T* line = to.data();
  for (int64_t out = 0; out < layout.shape.output[1]; ++out, w += channels * lines * columns) {
    for (int64_t i = 0; i < lines; ++i, line += layout.line_vectors * layout.lanes) {
      for (int64_t c = 0; c < channels; ++c) rows[c] = w + (c * lines + i) * columns;
      transpose(rows.data(), channels, columns, line, channels);
    }
  }
  return to;
}

// The opposite.
template <typename T>
void unpack(const Layout& layout, const T* line, T* dw) {
  const int64_t columns = layout.shape.kernel[2], lines = lines_of(layout), channels = layout.channels;
  std::vector<const T*> rows(columns);
  for (int64_t out = 0; out < layout.shape.output[1]; ++out, dw += channels * lines * columns) {
    for (int64_t i = 0; i < lines; ++i, line += layout.line_vectors * layout.lanes) {
      for (int64_t j = 0; j < columns; ++j) rows[j] = line + j * channels;
      transpose(rows.data(), columns, channels, dw + i * columns, lines * columns);
    }
  }
}

int64_t grain(const Layout& layout, const Places& places) {
  return grain_of(kSumGrain, places.count * layout.patch());
}

// Calls act(first, count) for groups of places of a channel: rows of places, so few that what they read of
// the input stays in the first-level cache while all channels are computed.
template <typename Act>
void for_groups(const Places& places, const Act& act) {
  constexpr int64_t kGroup = 18;
  const int64_t row = std::max<int64_t>(1, places.row), group = round_up(kGroup, row);
  for (int64_t first = 0; first < places.count; first += group) {
    act(first, std::min(group, places.count - first));
  }
}

// Outputs whose derivative is not 0. Neighbours, whose patches overlap, are kept apart: a load that overlaps
// a store just made has to wait for it.
template <typename T>
struct Derivatives {
  std::vector<int64_t> starts;  // of their patches
  std::vector<T> factors;       // [place][term]
};

// Of the places from `first` on, counted over all clips and channels.
template <typename T>
void collect(const std::vector<const T*>& dys, const int64_t* starts, const Places& places, int64_t first,
             int64_t count, Derivatives<T>& to) {
  constexpr int64_t kApart = 8;
  const int64_t terms = dys.size();
  to.starts.resize(count);
  to.factors.resize(count * terms);
  int64_t kept = 0;
  for (int64_t phase = 0; phase < std::min(kApart, count); ++phase) {
    for (int64_t i = first + phase; i < first + count; i += kApart) {
      bool any = false;
      for (int64_t term = 0; term < terms; ++term) {
        to.factors[kept * terms + term] = dys[term][i];
        any = any || dys[term][i] != T(0);
      }
      to.starts[kept] = starts[places.data[i]];
      kept += any;
    }
  }
  to.starts.resize(kept);
}

// Adds to a slab of frames of the padded input what outputs of one channel pass on to them. Every entry is
// added to in the order of the outputs, however the frames are cut into slabs.
template <typename T>
void add_outputs(const Layout& layout, const Derivatives<T>& derivatives,
                 const std::vector<const T*>& patches, const Range& slab, T* to) {
  const int64_t terms = patches.size(), count = derivatives.starts.size(), frames = layout.shape.kernel[0];
  const int64_t a_frame = layout.steps.size() / frames;
  const bool whole = slab.begin == 0 && slab.end == layout.frames();
  std::vector<const T*> from(terms);
  for (int64_t i = 0; i < count; i += whole ? count : 1) {
    const int64_t frame = whole ? 0 : derivatives.starts[i] / layout.frame;
    const int64_t start = derivatives.starts[i] - slab.begin * layout.frame;
    const int64_t first = std::max<int64_t>(0, slab.begin - frame);
    const int64_t last = whole ? frames : std::min(frames, slab.end - frame);
    if (first >= last) continue;
    const Steps steps{layout.steps.data() + first * a_frame, (last - first) * a_frame};
    for (int64_t term = 0; term < terms; ++term) {
      from[term] = patches[term] + first * a_frame * layout.lanes;
    }
    cpu_kernels<T>().patch_sums(derivatives.factors.data() + i * terms,
                                whole ? derivatives.starts.data() : &start, whole ? count : 1, from.data(),
                                terms, steps, to);
  }
}

}  // namespace

template <typename T>
void sparse_conv_output(const std::vector<const T*>& xs, const std::vector<const T*>& ws, const T* bias,
                        const ConvolutionShape& shape, const Places& places, T* y) {
  const Layout layout = plan_layout(shape, cpu_kernels<T>().tile_limits().lanes);
  const int64_t outs = shape.output[1], pairs = xs.size();
  const Steps steps{layout.steps.data(), static_cast<int64_t>(layout.steps.size())};
  std::vector<std::vector<T>> weights,
      inputs(pairs, std::vector<T>(layout.frames() * layout.frame + layout.slack()));
  for (const T* w : ws) weights.push_back(packed(layout, w));
  for (int64_t clip = 0; clip < shape.input[0]; ++clip) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      copy_input(layout, xs[pair] + clip * layout.a_clip(), inputs[pair].data());
    }
    parallel_for(outs, grain(layout, places), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> patches(places.count);
      for_groups(places, [&](int64_t group, int64_t count) {
        for (int64_t out = begin; out < end; ++out) {
          const int64_t first = (clip * outs + out) * places.count + group;
          for (int64_t i = 0; i < count; ++i) patches[i] = layout.starts[places.data[first + i]];
          std::fill_n(y + first, count, bias ? bias[out] : T(0));
          for (int64_t pair = 0; pair < pairs; ++pair) {
            cpu_kernels<T>().patch_dots(weights[pair].data() + out * layout.patch(), inputs[pair].data(),
                                        patches.data(), count, steps, y + first);
          }
        }
      });
    });
  }
}

template <typename T>
void sparse_conv_input(const std::vector<const T*>& dys, const std::vector<const T*>& ws,
                       const ConvolutionShape& shape, const Places& places, T* dx) {
  constexpr int64_t kTerms = 2;  // of patch_sums
  const Layout layout = plan_layout(shape, cpu_kernels<T>().tile_limits().lanes);
  const int64_t outs = shape.output[1], pairs = dys.size(), frames = shape.input[2];
  const int64_t before = shape.padding[0];
  std::vector<std::vector<T>> weights;
  for (const T* w : ws) weights.push_back(packed(layout, w));
  const int64_t cost = outs * places.count * layout.patch() / std::max<int64_t>(1, frames);
  for (int64_t clip = 0; clip < shape.input[0]; ++clip) {
    parallel_for(frames, grain_of(kSumGrain, cost), [&](int64_t begin, int64_t end) {
      const Range slab{begin ? begin + before : 0, end < frames ? end + before : layout.frames()};
      std::vector<T> sums((slab.end - slab.begin) * layout.frame + layout.slack());
      std::vector<const T*> patches;
      Derivatives<T> derivatives;
      for_groups(places, [&](int64_t group, int64_t count) {
        for (int64_t out = 0; out < outs; ++out) {
          for (int64_t pair = 0; pair < pairs; pair += kTerms) {
            const int64_t next = std::min(pair + kTerms, pairs);
            const std::vector<const T*> some(dys.begin() + pair, dys.begin() + next);
            collect(some, layout.starts.data(), places, (clip * outs + out) * places.count + group, count,
                    derivatives);
            patches.clear();
            for (int64_t i = pair; i < next; ++i) patches.push_back(weights[i].data() + out * layout.patch());
            add_outputs(layout, derivatives, patches, slab, sums.data());
          }
        }
      });
      for (int64_t t = begin; t < end; ++t) {
        const T* from = sums.data() + (t + before - slab.begin) * layout.frame;
        copy_frame(layout, from, t, dx + clip * layout.a_clip());
      }
    });
  }
}

template <typename T>
void sparse_conv_weight(const T* x, const T* dy, const ConvolutionShape& shape, const Places& places, T* dw) {
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  const Layout layout = plan_layout(shape, kernels.tile_limits().lanes);
  const int64_t outs = shape.output[1], vectors = layout.steps.size();
  std::vector<T> input(layout.frames() * layout.frame + layout.slack()), sums(outs * layout.patch());
  std::vector<int64_t> at(vectors);
  for (int64_t v = 0; v < vectors; ++v) at[v] = v * layout.lanes;
  // Blocks of equal size: one of a single vector would wait for every sum.
  const int64_t block = divide_up(vectors, divide_up(vectors, kMaxTileVectors));
  for (int64_t clip = 0; clip < shape.input[0]; ++clip) {
    copy_input(layout, x + clip * layout.a_clip(), input.data());
    parallel_for(outs, grain(layout, places), [&](int64_t begin, int64_t end) {
      Derivatives<T> derivatives;
      for_groups(places, [&](int64_t group, int64_t count) {
        for (int64_t out = begin; out < end; ++out) {
          collect({dy}, layout.starts.data(), places, (clip * outs + out) * places.count + group, count,
                  derivatives);
          for (int64_t v = 0; v < vectors; v += block) {
            kernels.tile(1, std::min(block, vectors - v))(
                derivatives.factors.data(), input.data(), derivatives.starts.data(),
                derivatives.starts.size(), layout.steps.data() + v, nullptr,
                sums.data() + out * layout.patch(), 0, at.data() + v);
          }
        }
      });
    });
  }
  unpack(layout, sums.data(), dw);
}

#define VLEAK_SPARSE_CONVOLUTION(T)                                                                         \
  template void sparse_conv_output<T>(const std::vector<const T*>&, const std::vector<const T*>&, const T*, \
                                      const ConvolutionShape&, const Places&, T*);                          \
  template void sparse_conv_input<T>(const std::vector<const T*>&, const std::vector<const T*>&,            \
                                     const ConvolutionShape&, const Places&, T*);                           \
  template void sparse_conv_weight<T>(const T*, const T*, const ConvolutionShape&, const Places&, T*);

VLEAK_SPARSE_CONVOLUTION(float)
VLEAK_SPARSE_CONVOLUTION(double)

}  // namespace vleak
