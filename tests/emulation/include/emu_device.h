// SPDX-License-Identifier: Apache-2.0
// What device code sees: qualifiers, indices, intrinsics. Included by the fake CUDA headers, so
// that kernels compile unchanged as C++20 on the host.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// After the standard headers, which look at it.
#ifndef __CUDACC__
#define __CUDACC__ 1
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
// A block runs on a host thread of its own, so its shared memory is that thread's local memory.
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#define EMU_OUTSIDE __attribute__((noinline))

namespace emu {
struct Idx {
  unsigned x, y, z;
};
// The same in all of a thread's life, so calls may be merged.
extern "C" Idx emu_thread_idx() __attribute__((const));
extern "C" Idx emu_block_idx() __attribute__((const));
extern "C" Idx emu_block_dim() __attribute__((const));
extern "C" Idx emu_grid_dim() __attribute__((const));

enum class WarpOp : int {
  kNone,
  kShfl,
  kShflUp,
  kShflDown,
  kShflXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kSyncWarp,
  kLdmatrix,
  kLdmatrixTrans,
  kMmaF16,
  kMmaBf16
};
uint64_t warp_op(WarpOp op, unsigned mask, uint64_t value, int param, int width, const void* site);
void sync_threads(const void* site);
void fence(int scope);
enum class Atomic : int { kAdd, kMax, kIncrement };
// Of 4 or 8 bytes; what was there before.
uint64_t atomic_update(void* p, size_t bytes, uint64_t value, Atomic how, bool is_signed,
                       const void* site);
void read_cg(const void* p, size_t n, const void* site);
size_t to_shared(const void* p);
void* from_shared(uint32_t offset);

template <typename T>
inline uint64_t to_bits(T x) {
  static_assert(sizeof(T) <= 8);
  uint64_t b = 0;
  __builtin_memcpy(&b, &x, sizeof(T));
  return b;
}
template <typename T>
inline T from_bits(uint64_t b) {
  T x;
  __builtin_memcpy(&x, &b, sizeof(T));
  return x;
}
#define EMU_HERE __builtin_return_address(0)
#define EMU_UNSEEN __attribute__((noinline, no_sanitize("thread")))
template <typename T>
EMU_UNSEEN T shfl(WarpOp op, unsigned mask, T x, int param, int width) {
  return from_bits<T>(warp_op(op, mask, to_bits(x), param, width, EMU_HERE));
}
EMU_UNSEEN inline uint64_t vote(WarpOp op, unsigned mask, uint64_t x) {
  return warp_op(op, mask, x, 0, 32, EMU_HERE);
}
EMU_UNSEEN inline void barrier() { sync_threads(EMU_HERE); }
template <typename T>
EMU_UNSEEN T atomic(T* p, T value, Atomic how) {
  const auto bits = static_cast<uint64_t>(static_cast<std::make_unsigned_t<T>>(value));
  return static_cast<T>(atomic_update(p, sizeof(T), bits, how, std::is_signed_v<T>, EMU_HERE));
}
template <typename T>
EMU_UNSEEN T load_cg(const T* p) {
  read_cg(p, sizeof(T), EMU_HERE);
  T x;
  __builtin_memcpy(&x, p, sizeof(T));
  return x;
}
}  // namespace emu

#define threadIdx (emu::emu_thread_idx())
#define blockIdx (emu::emu_block_idx())
#define blockDim (emu::emu_block_dim())
#define gridDim (emu::emu_grid_dim())

#define EMU_INTRINSIC static inline __attribute__((always_inline))
EMU_INTRINSIC void __syncthreads() { emu::barrier(); }
EMU_INTRINSIC void __syncwarp(unsigned mask = 0xffffffffu) {
  emu::vote(emu::WarpOp::kSyncWarp, mask, 0);
}
EMU_INTRINSIC void __threadfence() { emu::fence(2); }
EMU_INTRINSIC void __threadfence_block() { emu::fence(1); }
EMU_INTRINSIC void __threadfence_system() { emu::fence(3); }
template <typename T>
EMU_INTRINSIC T __shfl_sync(unsigned m, T x, int lane, int width = 32) {
  return emu::shfl(emu::WarpOp::kShfl, m, x, lane, width);
}
template <typename T>
EMU_INTRINSIC T __shfl_up_sync(unsigned m, T x, unsigned d, int width = 32) {
  return emu::shfl(emu::WarpOp::kShflUp, m, x, static_cast<int>(d), width);
}
template <typename T>
EMU_INTRINSIC T __shfl_down_sync(unsigned m, T x, unsigned d, int width = 32) {
  return emu::shfl(emu::WarpOp::kShflDown, m, x, static_cast<int>(d), width);
}
template <typename T>
EMU_INTRINSIC T __shfl_xor_sync(unsigned m, T x, int d, int width = 32) {
  return emu::shfl(emu::WarpOp::kShflXor, m, x, d, width);
}
EMU_INTRINSIC unsigned __ballot_sync(unsigned m, int p) {
  return static_cast<unsigned>(emu::vote(emu::WarpOp::kBallot, m, p != 0));
}
EMU_INTRINSIC int __any_sync(unsigned m, int p) {
  return static_cast<int>(emu::vote(emu::WarpOp::kAny, m, p != 0));
}
EMU_INTRINSIC int __all_sync(unsigned m, int p) {
  return static_cast<int>(emu::vote(emu::WarpOp::kAll, m, p != 0));
}
template <typename T>
EMU_INTRINSIC unsigned __match_any_sync(unsigned m, T x) {
  return static_cast<unsigned>(emu::vote(emu::WarpOp::kMatchAny, m, emu::to_bits(x)));
}
EMU_INTRINSIC unsigned __reduce_add_sync(unsigned m, unsigned x) {
  return static_cast<unsigned>(emu::vote(emu::WarpOp::kReduceAdd, m, x));
}
EMU_INTRINSIC int __reduce_add_sync(unsigned m, int x) {
  return static_cast<int>(emu::vote(emu::WarpOp::kReduceAdd, m, static_cast<unsigned>(x)));
}
EMU_INTRINSIC int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INTRINSIC int __ffs(int x) { return __builtin_ffs(x); }
EMU_INTRINSIC int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
template <typename T>
EMU_INTRINSIC T __ldcg(const T* p) {
  return emu::load_cg(p);
}
template <typename T>
EMU_INTRINSIC T __ldg(const T* p) {
  return *p;
}
EMU_INTRINSIC int atomicAdd(int* p, int v) { return emu::atomic(p, v, emu::Atomic::kAdd); }
EMU_INTRINSIC unsigned atomicAdd(unsigned* p, unsigned v) {
  return emu::atomic(p, v, emu::Atomic::kAdd);
}
EMU_INTRINSIC int atomicMax(int* p, int v) { return emu::atomic(p, v, emu::Atomic::kMax); }
EMU_INTRINSIC unsigned long long atomicMax(unsigned long long* p, unsigned long long v) {
  return emu::atomic(p, v, emu::Atomic::kMax);
}
EMU_INTRINSIC unsigned atomicInc(unsigned* p, unsigned v) {
  return emu::atomic(p, v, emu::Atomic::kIncrement);
}
EMU_INTRINSIC size_t __cvta_generic_to_shared(const void* p) { return emu::to_shared(p); }
