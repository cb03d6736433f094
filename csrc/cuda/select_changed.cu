// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/select.cuh"
#include "stc/token_cosine.cuh"

namespace stc::cuda {

cudaError_t token_cosine(const CosineParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide =
        vectorises(p.current, p.channels, V) && vectorises(p.reference, p.channels, V);
    return launch(wide ? token_cosine_kernel<T, V> : token_cosine_kernel<T, 1>,
                  ceil_div(p.rows, kRowWarps), dim3(kRowThreads), 0, stream, p);
  });
}

cudaError_t select(const SelectParams& p, int64_t rows, cudaStream_t stream) {
  if (p.capacity == 0 && !p.below) return cudaSuccess;
  if (p.tokens > kSharedKeys) {
    return launch(select_kernel<false>, rows, dim3(kSelectThreads), 0, stream, p);
  }
  const size_t bytes = static_cast<size_t>(p.tokens) * sizeof(uint32_t);
  return launch(select_kernel<true>, rows, dim3(kSelectThreads), bytes, stream, p);
}

}  // namespace stc::cuda
