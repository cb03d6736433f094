// SPDX-License-Identifier: Apache-2.0
#include "stc/compact_tokens.cuh"

#include "launchers.h"

namespace stc::cuda {

namespace {

// Copies bits, so only the size of an element matters.
template <typename T>
cudaError_t copy_rows(const CompactParams& p, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const bool wide = vectorises(p.tokens, p.channels, V);
  return launch(wide ? compact_copy_kernel<T, V> : compact_copy_kernel<T, 1>,
                ceil_div(p.capacity, kRowWarps), dim3(kWarp, kRowWarps), 0, stream, p);
}

}  // namespace

cudaError_t compact_tokens(const CompactParams& p, cudaStream_t stream) {
  const int64_t blocks = p.frames * pieces_per_frame(p.tokens_per_frame);
  cudaError_t status = cudaSuccess;
  if (blocks == 0) {  // nothing to number: every place is free, every frame has none
    status = cudaMemsetAsync(p.indices, 0xff, static_cast<size_t>(p.capacity) * 4, stream);
    if (status != cudaSuccess) return status;
    status = cudaMemsetAsync(p.counts, 0, static_cast<size_t>(p.frames) * 4, stream);
  } else {
    status = launch(compact_count_kernel, blocks, kCompactThreads, 0, stream, p);
    if (status != cudaSuccess) return status;
    status = launch(compact_number_kernel, blocks, kCompactThreads, 0, stream, p);
  }
  if (status != cudaSuccess || p.channels == 0) return status;
  return p.element_size == 4 ? copy_rows<uint32_t>(p, stream) : copy_rows<uint16_t>(p, stream);
}

}  // namespace stc::cuda
