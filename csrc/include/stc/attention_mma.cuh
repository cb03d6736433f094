// SPDX-License-Identifier: Apache-2.0
// Attention on tensor cores (mma.sync, sm_80 and later) for float16 and bfloat16, after
// FlashAttention-2 (arXiv 2307.08691): keys and values pass through shared memory in turn, each
// loaded while the other is multiplied; sums are float32.
#pragma once

#include "stc/attention.cuh"

namespace stc::cuda {

constexpr float kLog2E = 1.4426950408889634f;

STC_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes to shared memory in the background; zeros where not `inside`.
STC_DEVICE void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
               "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
STC_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

// Four 8x8 matrices, of which each lane gives the address of one row.
STC_DEVICE void load_matrices(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
STC_DEVICE void load_transposed(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// c (16x8) += a (16x16) b (16x8).
template <typename T>
STC_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
STC_DEVICE void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
STC_DEVICE void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T>
STC_DEVICE uint32_t pack_pair(float low, float high) {
  const Pack<T, 2> pair = {{from_float<T>(low), from_float<T>(high)}};
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Sizes of one instance. Width is the width of a head, rounded up to one of a few.
template <int Width_, int Warps_>
struct MmaShape {
  static constexpr int kWidth = Width_;
  static constexpr int kThreads = Warps_ * kWarp;
  static constexpr int kQueries = 16 * Warps_;           // of a block, 16 of a warp
  static constexpr int kKeys = Width_ <= 128 ? 64 : 32;  // of a tile
  static constexpr int kPitch =
      Width_ + 8;  // elements; 16 bytes more, so that ldmatrix is free of conflicts
  static constexpr size_t kShared = (kQueries + 2 * kKeys) * kPitch * 2 + 2 * kKeys * sizeof(float);
};

// `count` tokens from `first` on into shared memory; zeros behind the last token and channel.
template <typename Shape, typename T>
STC_DEVICE void load_heads(T* to, const HeadView& view, int64_t batch, int64_t head, int64_t first,
                           int64_t tokens, int count, int64_t width) {
  constexpr int kChunks = Shape::kWidth / 8;
  const T* base = head_of<T>(view, batch, 0, head);
  for (int i = threadIdx.x; i < count * kChunks; i += Shape::kThreads) {
    const int row = i / kChunks, c = i % kChunks * 8;
    const bool inside = first + row < tokens && c < width;
    const T* from = inside ? base + (first + row) * view.token_stride + c : base;
    copy_async(to + row * Shape::kPitch + c, from, inside);
  }
}

// Block: Shape::kQueries queries of one head. In the layout of mma a lane holds, of each 16x8
// result, two columns of row lane / 4 (first pair) and of row lane / 4 + 8 (second pair).
template <typename T, int Width, int Warps>
__global__ void __launch_bounds__(Warps* kWarp) mma_attention_kernel(const AttentionParams p) {
  using Shape = MmaShape<Width, Warps>;
  constexpr int kWidth = Shape::kWidth, kKeys = Shape::kKeys, kPitch = Shape::kPitch;
  extern __shared__ __align__(16) unsigned char shared[];
  T* query = reinterpret_cast<T*>(shared);
  T* key = query + Shape::kQueries * kPitch;
  T* value = key + kKeys * kPitch;
  float* bias = reinterpret_cast<float*>(value + kKeys * kPitch);  // two tiles, used in turn
  const QueryTile at = query_tile(p, Shape::kQueries);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Rows and columns that this lane names to ldmatrix: for a, and for b as stored and transposed.
  const T* query_row = query + (warp * 16 + lane % 16) * kPitch + lane / 16 * 8;
  const T* key_row = key + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
  const T* value_row = value + lane % 16 * kPitch + lane / 16 * 8;
  const float scale = p.scale * kLog2E;

  load_heads<Shape>(query, p.query, at.batch, at.head, at.first, p.queries, Shape::kQueries,
                    p.width);
  load_heads<Shape>(key, p.key, at.batch, at.group, 0, p.keys, kKeys, p.width);
  float out[kWidth / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  int turn = 0;
  for (int64_t first = 0; first < p.keys; first += kKeys, turn ^= 1) {
    float* tile_bias = bias + turn * kKeys;
    for (int i = threadIdx.x; i < kKeys; i += Shape::kThreads) {
      tile_bias[i] = bias_of(p, at.batch, first + i) * kLog2E;
    }
    wait_for_copies();
    __syncthreads();  // keys are there, and nobody reads the values before any more
    load_heads<Shape>(value, p.value, at.batch, at.group, first, p.keys, kKeys, p.width);

    float weight[kKeys / 8][4] = {};
#pragma unroll
    for (int c = 0; c < kWidth; c += 16) {
      uint32_t a[4];
      load_matrices(a, query_row + c);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, key_row + n * 16 * kPitch + c);
        multiply_add<T>(weight[2 * n], a, b[0], b[1]);
        multiply_add<T>(weight[2 * n + 1], a, b[2], b[3]);
      }
    }
    wait_for_copies();
    __syncthreads();  // values are there, and nobody reads these keys any more
    if (first + kKeys < p.keys) {
      load_heads<Shape>(key, p.key, at.batch, at.group, first + kKeys, p.keys, kKeys, p.width);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {  // row lane / 4, then row lane / 4 + 8
      float highest = maximum[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          weight[n][i] = weight[n][i] * scale + tile_bias[n * 8 + lane % 4 * 2 + i % 2];
          highest = fmaxf(highest, weight[n][i]);
        }
      }
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
      const float shift = finite_maximum(highest);
      const float shrink = exp2f(maximum[half] - shift);
      maximum[half] = highest;
      float added = 0.0f;  // of this lane's columns; the lanes of a row are summed up at the end
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          weight[n][i] = exp2f(weight[n][i] - shift);
          added += weight[n][i];
        }
      }
      sum[half] = sum[half] * shrink + added;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        out[n][2 * half] *= shrink;
        out[n][2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      // Results of the first product lie in the lanes as the second wants its left factor.
      const float (&w)[4] = weight[2 * k], (&v)[4] = weight[2 * k + 1];
      const uint32_t a[4] = {pack_pair<T>(w[0], w[1]), pack_pair<T>(w[2], w[3]),
                             pack_pair<T>(v[0], v[1]), pack_pair<T>(v[2], v[3])};
#pragma unroll
      for (int n = 0; n < kWidth / 16; ++n) {
        uint32_t b[4];
        load_transposed(b, value_row + k * 16 * kPitch + n * 16);
        multiply_add<T>(out[2 * n], a, b[0], b[1]);
        multiply_add<T>(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  wait_for_copies();  // without keys nobody has waited for the queries
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(kAllLanes, sum[half], 1);
    sum[half] += __shfl_xor_sync(kAllLanes, sum[half], 2);
    const int64_t token = at.first + warp * 16 + half * 8 + lane / 4;
    if (token >= p.queries) continue;
    T* row =
        static_cast<T*>(p.out) + ((at.batch * p.queries + token) * p.heads + at.head) * p.width;
    const float inverse = inverse_of_sum(sum[half]);
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const int c = n * 8 + lane % 4 * 2;
      if (c >= p.width) continue;
      *reinterpret_cast<uint32_t*>(row + c) =
          pack_pair<T>(out[n][2 * half] * inverse, out[n][2 * half + 1] * inverse);
    }
  }
}

}  // namespace stc::cuda
