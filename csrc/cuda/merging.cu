// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/merging.cuh"

namespace stc::cuda {

cudaError_t bipartite_match(const MatchingParams& p, cudaStream_t stream) {
  if (p.tokens == 0) return cudaSuccess;
  const size_t bytes = static_cast<size_t>(p.frames * p.candidates) * sizeof(*p.match);
  cudaError_t status = bytes == 0 ? cudaSuccess : cudaMemsetAsync(p.match, 0, bytes, stream);
  if (status != cudaSuccess) return status;
  constexpr int64_t kSide = kMatchSide * kMatchWarps;
  const int64_t blocks = p.frames * ceil_div(p.candidates, kSide) * ceil_div(p.partners, kSide);
  status = visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    return launch(
        vectorises(p.metric, p.channels, V) ? match_tiles_kernel<T, V> : match_tiles_kernel<T, 1>,
        blocks, dim3(kMatchThreads), 0, stream, p);
  });
  if (status != cudaSuccess) return status;
  return launch(match_pairs_kernel, p.frames, dim3(kSelectThreads), 0, stream, p);
}

cudaError_t merge_tokens(MergingParams p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.tokens, p.channels, V);
    // At least one warp per row, which writes its size, even where there are no channels.
    p.parts = ceil_div(p.channels, wide ? kMergeChannels<V> : kMergeChannels<1>);
    if (p.parts == 0) p.parts = 1;
    return launch(wide ? merge_rows_kernel<T, V> : merge_rows_kernel<T, 1>,
                  ceil_div(p.frames * p.rows * p.parts, kRowWarps), dim3(kRowThreads), 0, stream,
                  p);
  });
}

}  // namespace stc::cuda
