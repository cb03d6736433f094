// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "emu_device.h"
struct alignas(2) __nv_bfloat16 {
  uint16_t x;
};
namespace emu {
inline __attribute__((always_inline)) float bf16_to_float(uint16_t h) {
  const uint32_t b = static_cast<uint32_t>(h) << 16;
  float f;
  __builtin_memcpy(&f, &b, 4);
  return f;
}
inline uint16_t float_to_bf16(float f) {
  uint32_t b;
  __builtin_memcpy(&b, &f, 4);
  if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}
}  // namespace emu
EMU_INTRINSIC float __bfloat162float(__nv_bfloat16 h) { return emu::bf16_to_float(h.x); }
EMU_INTRINSIC __nv_bfloat16 __float2bfloat16_rn(float f) { return {emu::float_to_bf16(f)}; }
