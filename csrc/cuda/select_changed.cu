// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/select_changed.cuh"
#include "tickets.h"

namespace stc::cuda {

namespace {

cudaError_t select(const SelectParams& p, int64_t frames, cudaStream_t stream) {
  if (p.capacity == 0 && !p.below) return cudaSuccess;
  if (p.tokens > kSharedKeys) {
    return launch(select_kernel<false>, frames, dim3(kSelectThreads), 0, stream, p);
  }
  const size_t bytes = static_cast<size_t>(p.tokens) * sizeof(uint32_t);
  return launch(select_kernel<true>, frames, dim3(kSelectThreads), bytes, stream, p);
}

cudaError_t in_one_launch(SelectChangedParams p, int64_t frames, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  const int64_t most = kSelectChangedBlocks * multiprocessors / frames;
  const size_t bytes = static_cast<size_t>(p.cosine.tokens) * sizeof(uint32_t);
  return visit(p.cosine.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    const int V = is_wide(p.cosine, kVector<T>) ? kVector<T> : 1;
    p.share = frame_blocks(p.cosine.tokens, kCosineWarps / cosine_team(p.cosine.channels, V), most);
    return launch(V > 1 ? select_changed_kernel<T, kVector<T>> : select_changed_kernel<T, 1>,
                  frames * p.share.blocks, dim3(kSelectThreads), bytes, stream, p);
  });
}

}  // namespace

cudaError_t select_changed(const CosineParams& cosine, const SelectParams& selection,
                           int64_t frames, cudaStream_t stream) {
  if (frames == 0) return cudaSuccess;
  if (frames <= kTicketFrames && cosine.tokens <= kSharedKeys) {
    const Ticket ticket(stream);
    if (ticket.slot() >= 0) {
      return in_one_launch({cosine, selection, {}, ticket.slot()}, frames, stream);
    }
  }
  const cudaError_t status = token_cosine(cosine, stream);
  return status == cudaSuccess ? select(selection, frames, stream) : status;
}

}  // namespace stc::cuda
