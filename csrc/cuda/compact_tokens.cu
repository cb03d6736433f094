// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/compact_tokens.cuh"

namespace stc::cuda {

namespace {

template <typename Unit>
cudaError_t copy_rows(const CompactionParams& p, cudaStream_t stream) {
  constexpr int V = kVector<Unit>;
  return launch(vectorises(p.tokens, p.channels, V) ? compact_copy_kernel<Unit, V>
                                                    : compact_copy_kernel<Unit, 1>,
                ceil_div(p.capacity, kRowWarps), dim3(kRowThreads), 0, stream, p);
}

}  // namespace

cudaError_t compact_tokens(const CompactionParams& p, cudaStream_t stream) {
  const int64_t pieces = p.frames * pieces_per_frame(p.tokens_per_frame);
  if (p.frames > 0 && pieces == 0) {  // frames without tokens, so there is no capacity either
    return cudaMemsetAsync(p.counts, 0, static_cast<size_t>(p.frames) * sizeof(int32_t), stream);
  }
  cudaError_t status = launch(compact_count_kernel, pieces, dim3(kCompactThreads), 0, stream, p);
  if (status != cudaSuccess) return status;
  status = launch(compact_number_kernel, pieces, dim3(kCompactThreads), 0, stream, p);
  if (status != cudaSuccess || p.channels == 0) return status;
  return p.element_size == 4 ? copy_rows<uint32_t>(p, stream) : copy_rows<uint16_t>(p, stream);
}

}  // namespace stc::cuda
