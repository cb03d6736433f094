// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: vector loads, conversions, sums in a fixed order, launching. Nothing
// here knows of torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "stc/params.h"

#define STC_DEVICE __device__ __forceinline__

namespace stc::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRowWarps = 4;  // warps of a block whose warps take one row each
constexpr int kRowThreads = kRowWarps * kWarp;
constexpr int kRowUnroll = 4;  // packs per row and lane that are on their way at once

STC_DEVICE float to_float(float x) { return x; }
STC_DEVICE float to_float(__half x) { return __half2float(x); }
STC_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
STC_DEVICE T from_float(float x);
template <>
STC_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
STC_DEVICE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
STC_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Consecutive elements that are loaded by one instruction (two, where they exceed 16 bytes).
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T lane[V];
};

// A pack at channel `c` of a row. V > 1 is for rows whose channels are next to each other.
template <int V, typename T>
STC_DEVICE Pack<T, V> load_pack(const T* row, int64_t c, int64_t stride) {
  if constexpr (V > 1) {
    return *reinterpret_cast<const Pack<T, V>*>(row + c);
  } else {
    return {{row[c * stride]}};
  }
}

template <int V, typename T>
STC_DEVICE void store_pack(T* row, int64_t c, int64_t stride, const Pack<T, V>& pack) {
  if constexpr (V > 1) {
    *reinterpret_cast<Pack<T, V>*>(row + c) = pack;
  } else {
    row[c * stride] = pack.lane[0];
  }
}

template <typename T>
STC_DEVICE const T* row_of(const TokenView& view, int64_t frame, int64_t token) {
  return static_cast<const T*>(view.data) + frame * view.batch_stride + token * view.token_stride;
}
template <typename T>
STC_DEVICE T* row_of(const MutableTokenView& view, int64_t frame, int64_t token) {
  return static_cast<T*>(view.data) + frame * view.batch_stride + token * view.token_stride;
}

// V channels as floats.
template <int V, typename T>
STC_DEVICE void unpack(const T* row, int64_t c, int64_t stride, float (&out)[V]) {
  const Pack<T, V> pack = load_pack<V>(row, c, stride);
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = to_float(pack.lane[v]);
}
template <int V>
STC_DEVICE void unpack(const ChannelVector& vector, int64_t c, float otherwise, float (&out)[V]) {
  if (vector.data == nullptr) {
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = otherwise;
  } else if (vector.dtype == DType::kFloat32) {
    unpack<V>(static_cast<const float*>(vector.data), c, vector.channel_stride, out);
  } else if (vector.dtype == DType::kFloat16) {
    unpack<V>(static_cast<const __half*>(vector.data), c, vector.channel_stride, out);
  } else {
    unpack<V>(static_cast<const __nv_bfloat16*>(vector.data), c, vector.channel_stride, out);
  }
}

template <typename T, int V>
STC_DEVICE Pack<T, V> pack_floats(const float (&values)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.lane[v] = from_float<T>(values[v]);
  return pack;
}

// So many lanes, of which this is number `lane`, go through the channels of a row: load(u, c) for a
// few packs, so that all of their loads are on their way, then use(u, c) for the same. `u` is a
// constant after unrolling.
template <int V, int kUnroll, typename Load, typename Use>
STC_DEVICE void sweep_lanes(int64_t channels, int64_t lane, int64_t lanes, const Load& load,
                            const Use& use) {
  for (int64_t start = lane * V; start < channels; start += lanes * V * kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t c = start + u * lanes * V;
      if (c < channels) load(u, c);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t c = start + u * lanes * V;
      if (c < channels) use(u, c);
    }
  }
}

// The same by one warp.
template <int V, typename Load, typename Use>
STC_DEVICE void sweep_row(int64_t channels, const Load& load, const Use& use) {
  sweep_lanes<V, kRowUnroll>(channels, threadIdx.x % kWarp, kWarp, load, use);
}

// A number of a row as frame and place in it. launch() sees to it that 32 bits are enough: the
// division of 64 bits is a call of a function.
struct Position {
  int64_t frame, place;

  STC_DEVICE Position(int64_t row, int64_t rows_per_frame) {
    const uint32_t number = static_cast<uint32_t>(row), per = static_cast<uint32_t>(rows_per_frame);
    frame = number / per;
    place = number % per;
  }
};

// The row that the warp of this thread takes.
STC_DEVICE int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
}

// Written so that a NaN norm stays NaN.
STC_DEVICE float at_least(float value, float floor) { return value < floor ? floor : value; }

// The same value in all lanes, added in a fixed order.
STC_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// The same value in all threads, added in a fixed order. All threads of the block must call it.
template <int kThreads>
STC_DEVICE float block_sum(float x) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ float partial[kWarps];
  x = warp_sum(x);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += partial[warp];
  return total;
}

// ---- host side ----

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements of a 16-byte load.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Whether every row of a view can be read by 16-byte loads.
inline bool vectorises(const ChannelVector& vector) {
  return vector.data == nullptr ||
         (reinterpret_cast<uintptr_t>(vector.data) % 16 == 0 && vector.channel_stride == 1);
}
template <typename View>
bool vectorises(const View& view, int64_t channels, int64_t vector) {
  const bool aligned = reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  return aligned && view.channel_stride == 1 && channels % vector == 0 &&
         view.batch_stride % vector == 0 && view.token_stride % vector == 0;
}

// Calls f with a null pointer of the element type; returns what it returns.
template <typename F>
cudaError_t visit(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<__half*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
  }
  return cudaErrorInvalidValue;
}
template <typename Pointer>
struct Pointee;
template <typename T>
struct Pointee<T*> {
  using Type = T;
};
template <typename Pointer>
using ElementOf = typename Pointee<Pointer>::Type;

// Launches unless there is nothing to do. More than 2^31 rows are an error, not a wrong result.
template <typename P>
cudaError_t launch(void (*kernel)(P), int64_t blocks, dim3 threads, size_t shared_bytes,
                   cudaStream_t stream, P params) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX / kRowWarps) return cudaErrorInvalidConfiguration;
  void* arguments[] = {&params};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                          dim3(static_cast<unsigned>(blocks)), threads, arguments, shared_bytes,
                          stream);
}

}  // namespace stc::cuda
