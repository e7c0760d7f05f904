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

// Reads a vector or, where Value is T, one entry; so that one expression serves a row and its end.
template <typename Value, typename T>
VLEAK_INLINE Value read(const T* from) {
  if constexpr (sizeof(Value) == sizeof(T))
    return *from;
  else
    return load(from);
}

template <typename Value, typename T>
VLEAK_INLINE void write(Value value, T* to) {
  if constexpr (sizeof(Value) == sizeof(T))
    *to = value;
  else
    store<T>(value, to);
}

// Calls run<Vector>(i) for all whole vectors of a row, and run<T>(i) for the entries that are left.
template <typename T, typename Run>
VLEAK_INLINE void along_row(int64_t count, const Run& run) {
  int64_t i = 0;
  for (; i + Wide<T>::kLanes <= count; i += Wide<T>::kLanes)
    run.template operator()<typename Wide<T>::Vector>(i);
  for (; i < count; ++i) run.template operator()<T>(i);
}

// A sum along a row.
template <typename T>
struct RowSum {
  typename Wide<T>::Vector lanes{};
  T rest{};

  inline __attribute__((always_inline)) void add(typename Wide<T>::Vector value) { lanes += value; }
  inline __attribute__((always_inline)) void add(T value) { rest += value; }
  inline __attribute__((always_inline)) double total() const {
    double sum = rest;
    for (int i = 0; i < Wide<T>::kLanes; ++i) sum += lanes[i];
    return sum;
  }
};

}  // namespace
}  // namespace vleak::VLEAK_VARIANT
