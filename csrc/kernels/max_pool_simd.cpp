#include <limits>
#include <type_traits>

#include "kernels/dispatch.h"
#include "kernels/vector.h"

namespace vleak::VLEAK_VARIANT {

template <typename T>
void pool_row(const PoolRow<T>& row) {
  using Vector = typename Wide<T>::Vector;
  using Codes = decltype(Vector{} < Vector{});
  using Code = std::remove_reference_t<decltype(Codes{}[0])>;
  constexpr int kLanes = Wide<T>::kLanes;
  for (int64_t from = 0; from < row.windows; from += kLanes) {
    Vector values = -std::numeric_limits<T>::infinity() - Vector{};
    Codes codes{};
    for (int64_t k = 0; k < row.count; ++k) {
      const Vector line = load(row.lines[k] + from);
      const Codes larger = (line > values) | (line != line);
      values = larger ? line : values;
      codes = larger ? static_cast<Code>(k) - Codes{} : codes;
    }
    const int64_t windows = kLanes < row.windows - from ? kLanes : row.windows - from;
    for (int64_t i = 0; i < windows; ++i) {
      row.values[from + i] = values[i];
      row.places[from + i] = row.first + (from + i) * row.stride + row.entries[codes[i]];
    }
  }
}

template void pool_row<float>(const PoolRow<float>&);
template void pool_row<double>(const PoolRow<double>&);

}  // namespace vleak::VLEAK_VARIANT
