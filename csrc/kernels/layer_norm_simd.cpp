#include "kernels/dispatch.h"
#include "kernels/vector.h"

namespace vleak::VLEAK_VARIANT {

template <typename T>
void norm_row(const T* x, const T* weight, const T* bias, int64_t entries, double eps, T* y, T* mean,
              T* scale) {
  RowSum<T> sum, squares;
  along_row<T>(entries, [&]<typename Value>(int64_t i) { sum.add(read<Value>(x + i)); });
  const T middle = static_cast<T>(sum.total() / entries);
  along_row<T>(entries, [&]<typename Value>(int64_t i) {
    const Value centred = read<Value>(x + i) - middle;
    squares.add(centred * centred);
  });
  const T factor = static_cast<T>(1 / root(squares.total() / entries + eps));
  along_row<T>(entries, [&]<typename Value>(int64_t i) {
    const Value normalised = (read<Value>(x + i) - middle) * factor;
    write(normalised * read<Value>(weight + i) + read<Value>(bias + i), y + i);
  });
  *mean = middle;
  *scale = factor;
}

// With g = weight * dy and n the normalised row, dx = scale * (g - mean of g - n * mean of g n).
template <typename T>
void norm_row_backward(const NormRow<T>& row, T* dx, T* dweight, T* dbias) {
  RowSum<T> of_g, of_gn;
  along_row<T>(row.entries, [&]<typename Value>(int64_t i) {
    const Value g = read<Value>(row.weight + i) * read<Value>(row.dy + i);
    of_g.add(g);
    of_gn.add(g * ((read<Value>(row.x + i) - row.mean) * row.scale));
  });
  const T g_mean = static_cast<T>(of_g.total() / row.entries);
  const T gn_mean = static_cast<T>(of_gn.total() / row.entries);
  along_row<T>(row.entries, [&]<typename Value>(int64_t i) {
    const Value dy = read<Value>(row.dy + i), n = (read<Value>(row.x + i) - row.mean) * row.scale;
    write((read<Value>(row.weight + i) * dy - g_mean - n * gn_mean) * row.scale, dx + i);
    write(read<Value>(dweight + i) + dy * n, dweight + i);
    write(read<Value>(dbias + i) + dy, dbias + i);
  });
}

// With u, v the slopes of dx and dweight, and q = v * dy, the derivative by n of what is differentiated is
// z = q - scale * (mean of u n * g + mean of g n * u). n depends on x as in norm_row_backward, and scale
// does: its derivative by x is -scale^2 * n / entries.
template <typename T>
void norm_row_second(const NormRow<T>& row, const RowSlopes<T>& slopes, T* by_dy, T* by_x, T* by_weight) {
  RowSum<T> of_g, of_gn, of_u, of_un, of_ug, of_q, of_qn;
  along_row<T>(row.entries, [&]<typename Value>(int64_t i) {
    const Value dy = read<Value>(row.dy + i), n = (read<Value>(row.x + i) - row.mean) * row.scale;
    const Value g = read<Value>(row.weight + i) * dy, q = read<Value>(slopes.weight + i) * dy;
    const Value u = read<Value>(slopes.x + i);
    of_g.add(g);
    of_gn.add(g * n);
    of_u.add(u);
    of_un.add(u * n);
    of_ug.add(u * g);
    of_q.add(q);
    of_qn.add(q * n);
  });
  const double count = static_cast<double>(row.entries), scale = row.scale;
  const double g = of_g.total() / count, gn = of_gn.total() / count, u = of_u.total() / count;
  const double un = of_un.total() / count, ug = of_ug.total() / count;
  const double z = of_q.total() / count - scale * (un * g + gn * u);
  const double zn = of_qn.total() / count - 2 * scale * un * gn;
  const double spread = ug - u * g - un * gn;
  const T u_mean = static_cast<T>(u), un_mean = static_cast<T>(un), z_mean = static_cast<T>(z);
  const T of_g_in_z = static_cast<T>(scale * un), of_u_in_z = static_cast<T>(scale * gn);
  const T of_n = static_cast<T>(zn + scale * spread);
  along_row<T>(row.entries, [&]<typename Value>(int64_t i) {
    const Value dy = read<Value>(row.dy + i), n = (read<Value>(row.x + i) - row.mean) * row.scale;
    const Value weight = read<Value>(row.weight + i), slope = read<Value>(slopes.weight + i);
    const Value slope_x = read<Value>(slopes.x + i);
    const Value centred = (slope_x - u_mean - n * un_mean) * row.scale;
    write(weight * centred + slope * n + read<Value>(slopes.bias + i), by_dy + i);
    write(read<Value>(by_weight + i) + dy * centred, by_weight + i);
    const Value by_n = slope * dy - weight * dy * of_g_in_z - slope_x * of_u_in_z;
    write((by_n - z_mean - n * of_n) * row.scale, by_x + i);
  });
}

#define VLEAK_NORM_ROWS(T)                                                              \
  template void norm_row<T>(const T*, const T*, const T*, int64_t, double, T*, T*, T*); \
  template void norm_row_backward<T>(const NormRow<T>&, T*, T*, T*);                    \
  template void norm_row_second<T>(const NormRow<T>&, const RowSlopes<T>&, T*, T*, T*);

VLEAK_NORM_ROWS(float)
VLEAK_NORM_ROWS(double)

}  // namespace vleak::VLEAK_VARIANT
