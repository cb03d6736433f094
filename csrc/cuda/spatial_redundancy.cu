// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/spatial_redundancy.cuh"

namespace stc::cuda {

namespace {

template <typename T, int V, int Rows, int Columns>
cudaError_t neighbour_dots(const RedundancyParams& p, cudaStream_t stream) {
  const int64_t tiles = p.frames * ceil_div(p.rows, Rows) * ceil_div(p.columns, Columns);
  return launch(neighbour_dots_kernel<T, V, Rows, Columns>, tiles, kGridThreads, 0, stream, p);
}

bool vectorises_grid(const RedundancyParams& p, int64_t vector) {
  const GridView& v = p.tokens;
  const TokenView rows = {v.data, v.frame_stride, v.row_stride, v.channel_stride};
  return vectorises(rows, p.channels, vector) && v.column_stride % vector == 0;
}

}  // namespace

cudaError_t spatial_redundancy(const RedundancyParams& p, cudaStream_t stream) {
  const int64_t tokens = p.frames * p.rows * p.columns;
  if (tokens == 0) return cudaSuccess;
  const cudaError_t status = visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    constexpr int V = kVector<T>;
    if (!vectorises_grid(p, V)) return neighbour_dots<T, 1, 2, 4>(p, stream);
    // Small grids need the blocks more than they need to read little: they are in the L2 cache.
    return tokens < kTiledTokens ? neighbour_dots<T, V, 1, 1>(p, stream)
                                 : neighbour_dots<T, V, 2, 4>(p, stream);
  });
  if (status != cudaSuccess) return status;
  return launch(neighbour_maxima_kernel, ceil_div(tokens, kMaximaThreads), kMaximaThreads, 0,
                stream, p);
}

}  // namespace stc::cuda
