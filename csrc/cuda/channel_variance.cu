// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/channel_variance.cuh"

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

}  // namespace stc::cuda
