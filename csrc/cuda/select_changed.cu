// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/token_cosine.cuh"

namespace stc::cuda {

cudaError_t token_cosine(const CosineParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide =
        vectorises(p.current, p.channels, V) && vectorises(p.reference, p.channels, V);
    return launch(wide ? token_cosine_kernel<T, V> : token_cosine_kernel<T, 1>,
                  ceil_div(p.rows, kRowWarps), dim3(kWarp, kRowWarps), 0, stream, p);
  });
}

}  // namespace stc::cuda
