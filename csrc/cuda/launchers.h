// SPDX-License-Identifier: Apache-2.0
// Entry points of the CUDA kernels for code that a plain C++ compiler sees. Each launches on the
// stream and returns at once; a size of zero launches nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "stc/params.h"

namespace stc::cuda {

cudaError_t token_cosine(const CosineParams& p, cudaStream_t stream);

}  // namespace stc::cuda
