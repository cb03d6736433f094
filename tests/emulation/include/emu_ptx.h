// SPDX-License-Identifier: Apache-2.0
// What tools/rewrite_asm.py puts in the place of asm statements. Operands come in the order in
// which the text of the instruction names them.
#pragma once
#include "emu_device.h"

namespace emu::ptx {
void cp_async_cg_shared_global(uint32_t to, const void* from, int size, int bytes,
                               const void* site);
void cp_async_wait_all(const void* site);
void ldmatrix(WarpOp op, uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t address,
              const void* site);
void mma(WarpOp op, float* d, const uint32_t* a, const uint32_t* b, const float* c,
         const void* site);

EMU_UNSEEN inline void run_cp_async_cg_shared_global(uint32_t to, const void* from, int size,
                                                     int bytes) {
  cp_async_cg_shared_global(to, from, size, bytes, EMU_HERE);
}
EMU_UNSEEN inline void run_cp_async_wait_all() { cp_async_wait_all(EMU_HERE); }
EMU_UNSEEN inline void run_ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& a, uint32_t& b,
                                                                    uint32_t& c, uint32_t& d,
                                                                    uint32_t row) {
  ldmatrix(WarpOp::kLdmatrix, a, b, c, d, row, EMU_HERE);
}
EMU_UNSEEN inline void run_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& a, uint32_t& b,
                                                                          uint32_t& c, uint32_t& d,
                                                                          uint32_t row) {
  ldmatrix(WarpOp::kLdmatrixTrans, a, b, c, d, row, EMU_HERE);
}
#define EMU_MMA(name, op)                                                                 \
  EMU_UNSEEN inline void run_mma_sync_aligned_m16n8k16_row_col_f32_##name##_##name##_f32( \
      float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2,  \
      uint32_t a3, uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3) {    \
    const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};                              \
    const float c[4] = {c0, c1, c2, c3};                                                  \
    float d[4];                                                                           \
    mma(op, d, a, b, c, EMU_HERE);                                                        \
    d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];                                           \
  }
EMU_MMA(f16, WarpOp::kMmaF16)
EMU_MMA(bf16, WarpOp::kMmaBf16)
#undef EMU_MMA
}  // namespace emu::ptx
