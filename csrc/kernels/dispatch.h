// The parts of the CPU kernels that are compiled once per instruction set (*_simd.cpp), and the choice among
// them: the best set that this machine has.
#pragma once

#include "kernels/activation.h"
#include "kernels/batch_norm.h"
#include "kernels/descend.h"
#include "kernels/gradient_match.h"
#include "kernels/layer_norm.h"
#include "kernels/max_pool.h"
#include "kernels/tile.h"

#define VLEAK_DECLARE_CPU_KERNELS(variant)                                                                   \
  namespace variant {                                                                                        \
  template <typename T>                                                                                      \
  void match_sums(const MatchTensor<T>* pieces, int64_t begin, int64_t end, MatchKind kind,                  \
                  MatchSums* sums);                                                                          \
  template <typename T>                                                                                      \
  void match_residuals(const MatchTensor<T>* pieces, int64_t begin, int64_t end, const MatchResult& result); \
  template <typename T>                                                                                      \
  void tv_planes(const T* x, const ClipSize& size, const TvSettings& tv, int64_t begin, int64_t end,         \
                 double* scratch, T* gradient, double* value);                                               \
  template <typename T>                                                                                      \
  void descend_planes(const Trials<T>& trials, const StepSettings& step, int64_t begin, int64_t end,         \
                      double* scratch, double* value);                                                       \
  template <typename T>                                                                                      \
  Tile<T> tile(int64_t rows, int64_t vectors);                                                               \
  template <typename T>                                                                                      \
  void patch_dots(const T* left, const T* right, const int64_t* places, int64_t count, const Steps& steps,   \
                  T* sums);                                                                                  \
  template <typename T>                                                                                      \
  void patch_sums(const T* factors, const int64_t* places, int64_t count, const T* const* patches,           \
                  int64_t terms, const Steps& steps, T* to);                                                 \
  template <typename T>                                                                                      \
  void split_line(const T* line, int64_t count, T* even, T* odd);                                            \
  template <typename T>                                                                                      \
  void winograd_input(const T* const* even, const T* const* odd, int64_t tiles, T* to, int64_t step);        \
  template <typename T>                                                                                      \
  void winograd_output(const T* from, int64_t step, int64_t tiles, T bias, T* upper, T* lower);              \
  template <typename T>                                                                                      \
  void pool_row(const PoolRow<T>& row);                                                                      \
  template <typename T>                                                                                      \
  void channel_sums(const T* x, T shift, const T* dy, const T* u, int64_t count, ChannelSums& sums);         \
  template <typename T>                                                                                      \
  void combine(const Combination<T>& terms, int count_of_terms, int64_t first, int64_t count);               \
  template <typename T>                                                                                      \
  void norm_row(const T* x, const T* weight, const T* bias, int64_t entries, double eps, T* y, T* mean,      \
                T* scale);                                                                                   \
  template <typename T>                                                                                      \
  void norm_row_backward(const NormRow<T>& row, T* dx, T* dweight, T* dbias);                                \
  template <typename T>                                                                                      \
  void norm_row_second(const NormRow<T>& row, const RowSlopes<T>& slopes, T* by_dy, T* by_x, T* by_weight);  \
  template <typename T>                                                                                      \
  void activation_slopes(Activation kind, const T* dy, const T* x, int64_t count, T* dx);                    \
  template <typename T>                                                                                      \
  void activation_bends(Activation kind, const SecondInputs<T>& inputs, int64_t count, T* by_dy, T* by_x);   \
  template <typename T>                                                                                      \
  void softmax_row(const SecondInputs<T>& inputs, int64_t entries, T* by_dy, T* by_y);                       \
  template <typename T>                                                                                      \
  BlockProduct<T> block_product(int64_t rows, int64_t vectors);                                              \
  template <typename T>                                                                                      \
  void row_product(const Row<T>& row);                                                                       \
  template <typename T>                                                                                      \
  TileLimits tile_limits();                                                                                  \
  }

namespace vleak {

VLEAK_DECLARE_CPU_KERNELS(baseline)
VLEAK_DECLARE_CPU_KERNELS(avx2)
VLEAK_DECLARE_CPU_KERNELS(avx512)

template <typename T>
struct CpuKernels {
  decltype(&baseline::match_sums<T>) match_sums;
  decltype(&baseline::match_residuals<T>) match_residuals;
  decltype(&baseline::tv_planes<T>) tv_planes;
  decltype(&baseline::descend_planes<T>) descend_planes;
  decltype(&baseline::tile<T>) tile;
  decltype(&baseline::patch_dots<T>) patch_dots;
  decltype(&baseline::patch_sums<T>) patch_sums;
  decltype(&baseline::split_line<T>) split_line;
  decltype(&baseline::winograd_input<T>) winograd_input;
  decltype(&baseline::winograd_output<T>) winograd_output;
  decltype(&baseline::pool_row<T>) pool_row;
  decltype(&baseline::channel_sums<T>) channel_sums;
  decltype(&baseline::combine<T>) combine;
  decltype(&baseline::norm_row<T>) norm_row;
  decltype(&baseline::norm_row_backward<T>) norm_row_backward;
  decltype(&baseline::norm_row_second<T>) norm_row_second;
  decltype(&baseline::activation_slopes<T>) activation_slopes;
  decltype(&baseline::activation_bends<T>) activation_bends;
  decltype(&baseline::softmax_row<T>) softmax_row;
  decltype(&baseline::block_product<T>) block_product;
  decltype(&baseline::row_product<T>) row_product;
  decltype(&baseline::tile_limits<T>) tile_limits;
};

// Doubles of scratch memory that tv_planes and descend_planes need for rows of this width.
VLEAK_INLINE int64_t scratch_doubles(int64_t width) { return 7 * width + 2; }

template <typename T>
const CpuKernels<T>& cpu_kernels();

}  // namespace vleak

// The name of the instruction set in use; and, for tests, the choice of another one. Returns false if this
// machine has no such set.
extern "C" const char* vleak_instruction_set();
extern "C" bool vleak_use_instruction_set(const char* name);
