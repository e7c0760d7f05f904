#include "kernels/max_pool.h"

#include <algorithm>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/parallel.h"

namespace vleak {
namespace {

// Entries of a window, counted from its first one in the plane.
std::vector<int64_t> entries_of(const PoolShape& shape) {
  std::vector<int64_t> entries;
  for (int64_t t = 0; t < shape.kernel[0]; ++t) {
    for (int64_t i = 0; i < shape.kernel[1]; ++i) {
      for (int64_t j = 0; j < shape.kernel[2]; ++j) {
        entries.push_back((t * shape.input[1] + i) * shape.input[2] + j);
      }
    }
  }
  return entries;
}

// The rows of the input that windows side by side read, cut by the phase in the stride, so that what one
// entry of all windows reads lies side by side.
template <typename T>
struct Lines {
  std::vector<T> cut;
  std::vector<const T*> of;  // [entry of a window]
};

template <typename T>
void cut_rows(const PoolShape& shape, const T* from, Lines<T>& lines) {
  const auto& [times, downs, acrosses] = shape.kernel;
  const int64_t stride = shape.stride[2], columns = shape.input[2];
  const int64_t phase = columns / stride + 1, a_row = stride * phase;
  lines.cut.resize(times * downs * a_row + cpu_kernels<T>().tile_limits().lanes);
  lines.of.clear();
  for (int64_t line = 0; line < times * downs; ++line) {
    const T* row = from + (line / downs * shape.input[1] + line % downs) * columns;
    T* to = lines.cut.data() + line * a_row;
    if (stride == 1) {
      std::copy_n(row, columns, to);
    } else if (stride == 2) {
      cpu_kernels<T>().split_line(row, columns / 2, to, to + phase);
      if (columns % 2) to[columns / 2] = row[columns - 1];
    } else {
      for (int64_t j = 0; j < columns; ++j) to[j % stride * phase + j / stride] = row[j];
    }
    for (int64_t j = 0; j < acrosses; ++j) lines.of.push_back(to + j % stride * phase + j / stride);
  }
}

}  // namespace

template <typename T>
void max_pool(const T* x, const PoolShape& shape, T* values, int64_t* places) {
  const auto& [frames, rows, columns] = shape.output;
  const int64_t a_frame = shape.input[1] * shape.input[2], a_plane = shape.input[0] * a_frame;
  const std::vector<int64_t> entries = entries_of(shape);
  const int64_t a_row = columns * entries.size();
  parallel_for(shape.planes * frames * rows, grain_of(kCopyGrain, a_row), [&](int64_t begin, int64_t end) {
    Lines<T> lines;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t first =
          at / rows % frames * shape.stride[0] * a_frame + at % rows * shape.stride[1] * shape.input[2];
      cut_rows(shape, x + at / (frames * rows) * a_plane + first, lines);
      cpu_kernels<T>().pool_row({lines.of.data(), entries.data(), static_cast<int64_t>(entries.size()),
                                 columns, first, shape.stride[2], values + at * columns,
                                 places + at * columns});
    }
  });
}

template void max_pool<float>(const float*, const PoolShape&, float*, int64_t*);
template void max_pool<double>(const double*, const PoolShape&, double*, int64_t*);

}  // namespace vleak
