// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/bias_gelu.cuh"
#include "stc/layer_norm.cuh"
#include "stc/rows.cuh"

namespace stc::cuda {

cudaError_t add_layer_norm(const AddNormParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.base, p.channels, V) && vectorises(p.update, p.channels, V) &&
                      vectorises(p.scale) && vectorises(p.weight) && vectorises(p.bias);
    return launch(wide ? add_layer_norm_kernel<T, V> : add_layer_norm_kernel<T, 1>, p.count,
                  dim3(kNormThreads), 0, stream, p);
  });
}

cudaError_t bias_gelu(const BiasGeluParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.x, p.channels, V) && vectorises(p.bias);
    return launch(wide ? bias_gelu_kernel<T, V> : bias_gelu_kernel<T, 1>,
                  ceil_div(p.count, kRowWarps), dim3(kRowThreads), 0, stream, p);
  });
}

cudaError_t scatter_key_value(const KeyValueParams& p, cudaStream_t stream) {
  return visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    const bool wide = vectorises(p.key_cache, p.channels, V) &&
                      vectorises(p.value_cache, p.channels, V) &&
                      vectorises(p.key, p.channels, V) && vectorises(p.value, p.channels, V) &&
                      vectorises(p.key_bias) && vectorises(p.value_bias);
    return launch(wide ? scatter_key_value_kernel<T, V> : scatter_key_value_kernel<T, 1>,
                  ceil_div(p.count, kRowWarps), dim3(kRowThreads), 0, stream, p);
  });
}

}  // namespace stc::cuda
