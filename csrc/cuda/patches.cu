// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/patches.cuh"

namespace stc::cuda {

cudaError_t frames_to_patches(const PatchParams& p, cudaStream_t stream) {
  const int64_t parts = ceil_div(p.resized_width, kPatchThreads);
  const cudaError_t status =
      launch(narrow_rows_kernel, p.frames * p.height * parts, dim3(kPatchThreads), 0, stream, p);
  if (status != cudaSuccess) return status;
  return launch(p.element_size == 4 ? make_patches_kernel<uint32_t> : make_patches_kernel<uint16_t>,
                p.frames * p.resized_height * parts, dim3(kPatchThreads), 0, stream, p);
}

cudaError_t update_patches(const PatchParams& p, cudaStream_t stream) {
  const cudaError_t status =
      launch(mark_changed_patches_kernel, p.frames * p.grid_height * p.grid_width,
             dim3(kPatchThreads), 0, stream, p);
  return status != cudaSuccess ? status : frames_to_patches(p, stream);
}

}  // namespace stc::cuda
