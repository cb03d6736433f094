// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/layer_norm.cuh"
#include "stc/rows.cuh"

namespace stc::cuda {

cudaError_t gather_rows(const GatherParams& p, cudaStream_t stream) {
  const auto start = [&](auto* type) {
    using Unit = ElementOf<decltype(type)>;
    constexpr int V = kVector<Unit>;
    return launch(vectorises(p.source, p.channels, V) ? gather_rows_kernel<Unit, V>
                                                      : gather_rows_kernel<Unit, 1>,
                  ceil_div(p.count, kRowWarps), dim3(kRowThreads), 0, stream, p);
  };
  return p.element_size == 4 ? start(static_cast<uint32_t*>(nullptr))
                             : start(static_cast<uint16_t*>(nullptr));
}

cudaError_t scatter_rows(const ScatterParams& p, cudaStream_t stream) {
  const auto start = [&](auto* type) {
    using Unit = ElementOf<decltype(type)>;
    constexpr int V = kVector<Unit>;
    const bool wide = vectorises(p.target, p.channels, V) && vectorises(p.rows, p.channels, V);
    return launch(wide ? scatter_rows_kernel<Unit, V> : scatter_rows_kernel<Unit, 1>,
                  ceil_div(p.count, kRowWarps), dim3(kRowThreads), 0, stream, p);
  };
  return p.element_size == 4 ? start(static_cast<uint32_t*>(nullptr))
                             : start(static_cast<uint16_t*>(nullptr));
}

cudaError_t gather_layer_norm(const GatherNormParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide =
        vectorises(p.source, p.channels, V) && vectorises(p.weight) && vectorises(p.bias);
    return launch(wide ? gather_layer_norm_kernel<T, V> : gather_layer_norm_kernel<T, 1>, p.count,
                  dim3(kNormThreads), 0, stream, p);
  });
}

cudaError_t scatter_residual(const ScatterResidualParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.base, p.channels, V) && vectorises(p.update, p.channels, V) &&
                      vectorises(p.rows, p.channels, V);
    return launch(wide ? scatter_residual_kernel<T, V> : scatter_residual_kernel<T, 1>,
                  p.batch * ceil_div(p.tokens, kRowWarps), dim3(kRowThreads), 0, stream, p);
  });
}

}  // namespace stc::cuda
