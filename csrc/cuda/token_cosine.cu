// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/token_cosine.cuh"

namespace stc::cuda {

cudaError_t token_cosine(const CosineParams& p, cudaStream_t stream) {
  if (p.rows > INT32_MAX - kCosineWarps) return cudaErrorInvalidConfiguration;
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    const int V = is_wide(p, kVector<T>) ? kVector<T> : 1;
    return launch(V > 1 ? token_cosine_kernel<T, kVector<T>> : token_cosine_kernel<T, 1>,
                  ceil_div(p.rows, kCosineWarps / cosine_team(p.channels, V)), dim3(kCosineThreads),
                  0, stream, p);
  });
}

}  // namespace stc::cuda
