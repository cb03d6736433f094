// SPDX-License-Identifier: Apache-2.0
// The order of selection as unsigned integers, for CPU and GPU alike.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define STC_ANYWHERE __host__ __device__ __forceinline__
#else
#define STC_ANYWHERE inline __attribute__((always_inline))
#endif

#ifndef STC_ISA
#define STC_ISA baseline
#endif

namespace stc::STC_ISA {

// Unsigned order of the result = order of the floats; +0 and -0 are the same key.
STC_ANYWHERE uint32_t ordered_bits(float x) {
  const float unsigned_zero = x + 0.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &unsigned_zero, sizeof(bits));
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

// The float that has these bits.
STC_ANYWHERE float ordered_float(uint32_t bits) {
  bits = (bits & 0x80000000u) ? bits & 0x7fffffffu : ~bits;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// Smaller key = chosen earlier. A number never has a key of 0, 1 or 0xffffffff.
STC_ANYWHERE uint32_t selection_key(float score, bool highest) {
  if (score != score) return highest ? 0xffffffffu : 1u;
  return highest ? ~ordered_bits(score) : ordered_bits(score);
}

}  // namespace stc::STC_ISA
