// SPDX-License-Identifier: Apache-2.0
// IEEE half as CUDA has it: storage and conversions (round to nearest even).
#pragma once
#include "emu_device.h"
struct alignas(2) __half {
  uint16_t x;
};
namespace emu {
inline __attribute__((always_inline)) float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exp = h >> 10 & 31u, man = h & 1023u;
  uint32_t b;
  if (exp == 31)
    b = sign | 0x7f800000u | man << 13;
  else if (exp != 0)
    b = sign | (exp + 112u) << 23 | man << 13;
  else {
    const float f = static_cast<float>(man) * 0x1p-24f;
    __builtin_memcpy(&b, &f, 4);
    b |= sign;
  }
  float f;
  __builtin_memcpy(&f, &b, 4);
  return f;
}
inline uint16_t float_to_half(float f) {
  uint32_t b;
  __builtin_memcpy(&b, &f, 4);
  const uint16_t sign = static_cast<uint16_t>(b >> 16 & 0x8000u);
  const uint32_t a = b & 0x7fffffffu;
  if (a > 0x7f800000u) return 0x7fff;           // CUDA's canonical NaN
  if (a >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
  if (a < 0x38800000u) {                        // subnormal: units of 2^-24
    const float u = __builtin_fabsf(f) * 0x1p24f;
    uint32_t n = static_cast<uint32_t>(u);
    const float rest = u - static_cast<float>(n);
    n += rest > 0.5f || (rest == 0.5f && (n & 1u));
    return static_cast<uint16_t>(sign | n);
  }
  uint32_t r = a - 0x38000000u;
  r += 0xfffu + (r >> 13 & 1u);
  return static_cast<uint16_t>(sign | r >> 13);
}
}  // namespace emu
EMU_INTRINSIC float __half2float(__half h) { return emu::half_to_float(h.x); }
EMU_INTRINSIC __half __float2half_rn(float f) { return {emu::float_to_half(f)}; }
