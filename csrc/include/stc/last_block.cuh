// SPDX-License-Identifier: Apache-2.0
// Where a frame's blocks have to wait for each other inside a launch, none waits: the last to
// arrive does the rest.
#pragma once

#include "stc/device.cuh"

namespace stc::cuda {

// Whether this block is the last of `blocks` to come here; if so, it sees what the others wrote
// before they came. All threads must call it. `arrivals` is zero before the first comes and after
// the last has come. Which one is last is chance, so what it does must not depend on it.
STC_DEVICE bool is_last_block(uint32_t* arrivals, uint32_t blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(arrivals, blocks - 1) == blocks - 1;  // counts from 0 to blocks - 1 to 0
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace stc::cuda
