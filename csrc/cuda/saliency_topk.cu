// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/saliency.cuh"
#include "stc/variance.cuh"

namespace stc::cuda {

cudaError_t channel_variance(const VarianceParams& p, cudaStream_t stream) {
  if (p.rows > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t status = visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.tokens, p.channels, V);
    const int64_t parts_of_row = ceil_div(p.channels, kWarp * (wide ? V : 1));
    return launch(wide ? variance_blocks_kernel<T, V> : variance_blocks_kernel<T, 1>,
                  p.blocks * parts_of_row, dim3(kVarianceThreads), 0, stream, p);
  });
  if (status != cudaSuccess) return status;
  return launch(variance_merge_kernel, ceil_div(p.channels, kVarianceThreads),
                dim3(kVarianceThreads), 0, stream, p);
}

cudaError_t saliency_scores(const SaliencyScoreParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.tokens, p.channels, V) && vectorises(p.memory);
    const int64_t blocks = p.frames * p.parts;
    const dim3 threads(kSaliencyThreads);
    cudaError_t status = launch(wide ? partial_anchors_kernel<T, V> : partial_anchors_kernel<T, 1>,
                                blocks, threads, 0, stream, p);
    if (status != cudaSuccess) return status;
    status = launch(mean_anchors_kernel, p.frames * ceil_div(p.channels, kSaliencyThreads), threads,
                    0, stream, p);
    if (status != cudaSuccess) return status;
    return launch(wide ? score_kernel<T, V> : score_kernel<T, 1>, blocks, threads, 0, stream, p);
  });
}

int64_t saliency_parts(int64_t tokens) { return ceil_div(tokens, kSaliencyTokens); }

}  // namespace stc::cuda
