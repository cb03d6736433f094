// SPDX-License-Identifier: Apache-2.0
// Functions for the PTX that the kernels embed (rewritten by tools/rewrite_asm.py), after the PTX
// ISA: cp.async, ldmatrix, mma.
#include <algorithm>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emu_ptx.h"
#include "engine.h"

namespace emu {

namespace {
void land(const AsyncCopy& c) {
  if (c.from != nullptr) {
    std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
    std::memset(static_cast<char*>(c.to) + c.bytes, 0, static_cast<size_t>(16 - c.bytes));
  }
}
}  // namespace

namespace ptx {

void cp_async_cg_shared_global(uint32_t to, const void* from, int size, int bytes,
                               const void* site) {
  Fiber* f = cur;
  ++stats.async_copies;
  void* const at = from_shared(to);
  if (size != 16) report("cp.async.cg of another size than 16", site, "");
  if (to % 16 != 0) report("misaligned cp.async (shared)", site, "");
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) report("misaligned cp.async (global)", site, "");
  if (bytes < 0 || bytes > 16) report("cp.async with a source size beyond 16", site, "");
#ifdef EMU_HOOKS
  if (bytes > 0)
    access(reinterpret_cast<uintptr_t>(from), static_cast<size_t>(bytes), false, false, site);
  access(reinterpret_cast<uintptr_t>(at), 16, true, false, site);
  mark_async(reinterpret_cast<uintptr_t>(at), 16, true);
#endif
  const AsyncCopy c = {at, from, bytes};
  // It may land at any time until it is waited for.
  if (draw() % 2 == 0) land(c);
  f->copies.push_back(c);
}

void cp_async_wait_all(const void* site) {
  Fiber* f = cur;
  for (const AsyncCopy& c : f->copies) {
    land(c);
#ifdef EMU_HOOKS
    mark_async(reinterpret_cast<uintptr_t>(c.to), 16, false);
    access(reinterpret_cast<uintptr_t>(c.to), 16, true, false, site);
#endif
  }
  (void)site;
  f->copies.clear();
  maybe_switch(8);
}

struct MatrixRow {
  uint32_t address;
  uint32_t out[4];
};
struct Mma {
  uint32_t a[4], b[2];
  float c[4];
};

void ldmatrix(WarpOp op, uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t address,
              const void* site) {
  ++stats.ldmatrix;
  if (address % 16 != 0) report("misaligned ldmatrix", site, "");
#ifdef EMU_HOOKS
  access(cur->block->worker->tls_lo + address, 16, false, false, site);
#endif
  MatrixRow row = {address, {}};
  warp_op(op, 0xffffffffu, reinterpret_cast<uint64_t>(&row), 0, 32, site);
  r0 = row.out[0], r1 = row.out[1], r2 = row.out[2], r3 = row.out[3];
}

void mma(WarpOp op, float* d, const uint32_t* a, const uint32_t* b, const float* c,
         const void* site) {
  ++stats.mma;
  Mma m = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  warp_op(op, 0xffffffffu, reinterpret_cast<uint64_t>(&m), 0, 32, site);
  std::copy(m.c, m.c + 4, d);
}

}  // namespace ptx

void compute_matrix(WarpOp op, Fiber* lanes) {
  if (op == WarpOp::kLdmatrix || op == WarpOp::kLdmatrixTrans) {
    for (int j = 0; j < 4; ++j) {
      uint16_t m[8][8];
      for (int r = 0; r < 8; ++r) {
        const auto* row = reinterpret_cast<const ptx::MatrixRow*>(lanes[j * 8 + r].in);
        std::memcpy(m[r], from_shared(row->address), 16);
      }
      for (int l = 0; l < 32; ++l) {
        auto* row = reinterpret_cast<ptx::MatrixRow*>(lanes[l].in);
        const int p = l / 4, q = l % 4 * 2;
        const uint16_t low = op == WarpOp::kLdmatrix ? m[p][q] : m[q][p];
        const uint16_t high = op == WarpOp::kLdmatrix ? m[p][q + 1] : m[q + 1][p];
        row->out[j] = static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
      }
    }
    return;
  }
  const bool bf16 = op == WarpOp::kMmaBf16;
  const auto number = [bf16](uint32_t pair, int half) {
    const auto bits = static_cast<uint16_t>(half == 0 ? pair : pair >> 16);
    return bf16 ? bf16_to_float(bits) : half_to_float(bits);
  };
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto* x = reinterpret_cast<const ptx::Mma*>(lanes[l].in);
    const int group = l / 4, pair = l % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      a[group][pair + i] = number(x->a[0], i);
      a[group + 8][pair + i] = number(x->a[1], i);
      a[group][pair + 8 + i] = number(x->a[2], i);
      a[group + 8][pair + 8 + i] = number(x->a[3], i);
      b[pair + i][group] = number(x->b[0], i);
      b[pair + 8 + i][group] = number(x->b[1], i);
    }
  }
  for (int l = 0; l < 32; ++l) {
    auto* x = reinterpret_cast<ptx::Mma*>(lanes[l].in);
    const int group = l / 4, pair = l % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i / 2 * 8, column = pair + i % 2;
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      x->c[i] += sum;
    }
  }
}

}  // namespace emu
