// Vectors as wide as the registers of an instruction set, for files named *_simd.cpp: private to each of
// them.
#pragma once

#include "kernels/common.h"

namespace vleak::VLEAK_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <typename T>
struct Wide {
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef T Loose __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = kBytes / sizeof(T);
};

template <typename T>
VLEAK_INLINE typename Wide<T>::Vector load(const T* from /* [lanes] */) {
  return *reinterpret_cast<const typename Wide<T>::Loose*>(from);
}

template <typename T>
VLEAK_INLINE void store(typename Wide<T>::Vector vector, T* to /* [lanes] */) {
  *reinterpret_cast<typename Wide<T>::Loose*>(to) = vector;
}

}  // namespace
}  // namespace vleak::VLEAK_VARIANT
