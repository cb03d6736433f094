// SPDX-License-Identifier: Apache-2.0
// Counters for kernels in which the last block of a frame goes on with it (last_block.cuh). They
// are zero before and after each launch, so no launch has to clear them, and lie in a slot that no
// other launch uses meanwhile: that of the stream or, while it is being recorded, that of the
// graph.
#pragma once

#include <cuda_runtime_api.h>

#include "stc/ticket_slots.h"

namespace stc::cuda {

// The slot, below kTicketSlots, for launches on this stream of the current device; -1 where there
// is none, because all are taken or a recording cannot keep one: then the caller launches without.
int ticket_slot(cudaStream_t stream);

}  // namespace stc::cuda
