// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/attention_column_mean.cuh"

namespace stc::cuda {

namespace {

template <ColumnMeanPass kPass>
int64_t blocks_of(const ColumnMeanKernelParams& p, int64_t rows_of_block) {
  const int64_t rows = kPass == ColumnMeanPass::kQueries ? p.queries : p.keys;
  return p.batch * p.heads * ceil_div(rows, rows_of_block);
}

template <typename T, int Width, ColumnMeanPass kPass>
cudaError_t mma_sums(const ColumnMeanKernelParams& p, cudaStream_t stream) {
  using Shape = MmaShape<Width, 4>;
  constexpr size_t kShared =
      (Shape::kQueries + 2 * Shape::kKeys) * Shape::kPitch * 2 + 2 * Shape::kKeys * sizeof(RowSum);
  const auto kernel = mma_sums_kernel<T, Width, kPass>;
  // More than the 48 KiB that need no permission. Per device, so it is not worth remembering.
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared));
  if (status != cudaSuccess) return status;
  return launch(kernel, blocks_of<kPass>(p, Shape::kQueries), dim3(Shape::kThreads), kShared,
                stream, p);
}

template <typename T, ColumnMeanPass kPass>
cudaError_t sums(const ColumnMeanKernelParams& p, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    // Tensor cores take 16-bit types whose heads are aligned; everything else goes the plain way.
    if (p.width > 0 && p.width <= kMaxHeadWidth && heads_are_aligned(p.query, p.width, 8) &&
        heads_are_aligned(p.key, p.width, 8)) {
      if (p.width <= 64) return mma_sums<T, 64, kPass>(p, stream);
      if (p.width <= 80) return mma_sums<T, 80, kPass>(p, stream);
      return p.width <= 128 ? mma_sums<T, 128, kPass>(p, stream)
                            : mma_sums<T, 256, kPass>(p, stream);
    }
  }
  return launch(plain_sums_kernel<T, kPass>, blocks_of<kPass>(p, kPlainWarps * kPlainRows),
                dim3(kPlainThreads), 0, stream, p);
}

}  // namespace

cudaError_t attention_column_mean(const ColumnMeanKernelParams& p, cudaStream_t stream) {
  if (p.batch * p.keys == 0) return cudaSuccess;
  const cudaError_t status = visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    const cudaError_t of_queries = sums<T, ColumnMeanPass::kQueries>(p, stream);
    return of_queries != cudaSuccess ? of_queries : sums<T, ColumnMeanPass::kKeys>(p, stream);
  });
  if (status != cudaSuccess) return status;
  return launch(mean_over_heads_kernel, ceil_div(p.batch * p.keys, kRowThreads), dim3(kRowThreads),
                0, stream, p);
}

}  // namespace stc::cuda
