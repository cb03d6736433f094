// SPDX-License-Identifier: Apache-2.0
// A float32 vector as wide as the instruction set of this translation unit, written with the vector
// extensions of GCC and Clang. Only the float16 conversion needs intrinsics.
//
// Kernel files are compiled once per instruction set with STC_ISA naming the namespace. They must
// not instantiate anything from the standard library: the linker keeps one copy of an inline
// function, and a copy built for AVX-512 would crash a machine without it.
#pragma once

#include <cstdint>

#include "stc/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef STC_ISA
#define STC_ISA baseline
#endif

#define STC_INLINE inline __attribute__((always_inline))

namespace stc::STC_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecHalfBits __attribute__((vector_size(kLanes * 2)));

template <typename To, typename From>
STC_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Not Vec{} + value, which turns -0 into 0 and is an addition therefore.
STC_INLINE Vec splat(float value) { return value - Vec{}; }

// ---- scalars ----

STC_INLINE float to_float(float x) { return x; }
STC_INLINE float to_float(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
STC_INLINE float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  if ((x.bits & 0x7c00u) == 0x7c00u) return bit_cast<float>(sign | magnitude | 0x7f800000u);
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f));
}

template <typename T>
T from_float(float x);
template <>
STC_INLINE float from_float<float>(float x) {
  return x;
}
template <>
STC_INLINE BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
STC_INLINE Half from_float<Half>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to inf
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded result in the low bits of the mantissa.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

// ---- vectors of consecutive elements ----

STC_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
STC_INLINE Vec load(const BFloat16* p) {
  VecHalfBits h;
  __builtin_memcpy(&h, p, sizeof(h));
  return bit_cast<Vec>(__builtin_convertvector(h, VecBits) << 16);
}
STC_INLINE Vec load(const Half* p) {
#if defined(__AVX512F__)
  // The unmasked intrinsics of GCC 12 warn about their own uninitialised operand.
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

STC_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }
STC_INLINE void store(BFloat16* p, Vec v) {
  const VecBits bits = bit_cast<VecBits>(v);
  const VecBits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecBits is_nan = bit_cast<VecBits>((bits & 0x7fffffffu) > 0x7f800000u);
  const VecBits chosen = (is_nan & 0x7fc0u) | (~is_nan & rounded);
  const VecHalfBits h = __builtin_convertvector(chosen, VecHalfBits);
  __builtin_memcpy(p, &h, sizeof(h));
}
STC_INLINE void store(Half* p, Vec v) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
#elif defined(__AVX2__) && defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<Half>(v[i]);
#endif
}

// ---- any stride, and the rest of a row that does not fill a vector ----

template <bool kUnit, typename T>
STC_INLINE Vec load(const T* p, int64_t stride) {
  if constexpr (kUnit) return load(p);
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i * stride]);
  return v;
}

// Lanes from `count` on are zero.
template <typename T>
STC_INLINE Vec load_partial(const T* p, int64_t stride, int count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = to_float(p[i * stride]);
  return load(lanes);
}

template <typename T>
STC_INLINE void store_partial(T* p, Vec v, int count) {
  for (int i = 0; i < count; ++i) p[i] = from_float<T>(v[i]);
}

// The lanes are added pairwise in one fixed order.
STC_INLINE float sum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// Calls f with a null pointer of the element type.
template <typename F>
STC_INLINE void visit(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<const float*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<const Half*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<const BFloat16*>(nullptr));
  }
}

template <typename Pointer>
struct Pointee;
template <typename T>
struct Pointee<const T*> {
  using Type = T;
};
template <typename Pointer>
using ElementOf = typename Pointee<Pointer>::Type;

template <typename T>
STC_INLINE const T* row_pointer(const TokenView& view, int64_t batch, int64_t token) {
  return static_cast<const T*>(view.data) + batch * view.batch_stride + token * view.token_stride;
}

}  // namespace stc::STC_ISA
