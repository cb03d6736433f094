// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "launchers.h"
#include "stc/saliency_topk.cuh"

namespace stc::cuda {

namespace {

// Calls f with a null pointer of the element type and how many of them a load takes.
template <typename F>
cudaError_t visit_width(const SaliencyTopkParams& p, const F& f) {
  return visit(p.dtype, [&](auto* type) {
    constexpr int V = kVector<ElementOf<decltype(type)>>;
    const bool wide = vectorises(p.tokens, p.channels, V) && vectorises(p.memory);
    return wide ? f(type, std::integral_constant<int, V>())
                : f(type, std::integral_constant<int, 1>());
  });
}

}  // namespace

int64_t saliency_slices(const SaliencyTopkParams& p) {
  int64_t slices = 0;
  visit_width(p, [&](auto*, auto width) {
    slices = ceil_div(p.channels, kSliceChannels<width()>);
    return cudaSuccess;
  });
  return slices > 0 ? slices : 1;  // tokens without channels have scores, too
}

cudaError_t saliency_topk(const SaliencyTopkParams& p, cudaStream_t stream) {
  const int64_t rows = p.frames * p.tokens_per_frame;
  if (rows == 0) return cudaSuccess;
  return visit_width(p, [&](auto* type, auto width) {
    using T = ElementOf<decltype(type)>;
    const cudaError_t status = launch(token_norms_kernel<T, width()>, ceil_div(rows + 1, kRowWarps),
                                      dim3(kRowThreads), 0, stream, p);
    if (status != cudaSuccess) return status;
    return launch(score_kernel<T, width()>, p.frames * p.slices, dim3(kSelectThreads), 0, stream,
                  p);
  });
}

}  // namespace stc::cuda
