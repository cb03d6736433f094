// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/attention_mma.cuh"

namespace stc::cuda {

namespace {

// Fewer blocks than this leave much of a GPU idle, so the queries are shared out more finely.
constexpr int64_t kFewBlocks = 128;

int64_t tiles_of(const AttentionParams& p, int64_t queries_per_block) {
  return p.batch * p.heads * ceil_div(p.queries, queries_per_block);
}

template <typename T, int Width>
cudaError_t plain(const AttentionParams& p, cudaStream_t stream) {
  return launch(plain_attention_kernel<T, Width>, tiles_of(p, kPlainWarps * kPlainQueries<Width>),
                dim3(kPlainThreads), 0, stream, p);
}

template <typename T, int Width, int Warps>
cudaError_t mma(const AttentionParams& p, cudaStream_t stream) {
  using Shape = MmaShape<Width, Warps>;
  const auto kernel = mma_attention_kernel<T, Width, Warps>;
  // More than the 48 KiB that need no permission. Per device, so it is not worth remembering.
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(Shape::kShared));
  if (status != cudaSuccess) return status;
  return launch(kernel, tiles_of(p, Shape::kQueries), dim3(Shape::kThreads), Shape::kShared, stream,
                p);
}

template <typename T, int Width>
cudaError_t mma(const AttentionParams& p, cudaStream_t stream) {
  return tiles_of(p, 64) < kFewBlocks ? mma<T, Width, 2>(p, stream) : mma<T, Width, 4>(p, stream);
}

}  // namespace

cudaError_t sparse_query_attention(const AttentionParams& p, cudaStream_t stream) {
  if (p.batch * p.queries * p.heads == 0) return cudaSuccess;
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    if constexpr (sizeof(T) == 2) {
      if (fits_tensor_cores(p)) {
        if (p.width <= 64) return mma<T, 64>(p, stream);
        if (p.width <= 80) return mma<T, 80>(p, stream);
        return p.width <= 128 ? mma<T, 128>(p, stream) : mma<T, 256>(p, stream);
      }
    }
    if (p.width <= 64) return plain<T, 64>(p, stream);
    return p.width <= 128 ? plain<T, 128>(p, stream) : plain<T, 256>(p, stream);
  });
}

}  // namespace stc::cuda
