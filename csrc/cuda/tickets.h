// SPDX-License-Identifier: Apache-2.0
// Counters for kernels in which the last block of a frame goes on with it (last_block.cuh). They
// are zero before and after each launch, so no launch has to clear them, and lie in a slot that no
// other launch uses meanwhile: that of the stream or, while it is being recorded, that of the
// graph.
#pragma once

#include <cuda_runtime_api.h>

#include "stc/ticket_slots.h"

namespace stc::cuda {

// A slot for one launch on this stream of the current device; lives until after the launch.
class Ticket {
 public:
  explicit Ticket(cudaStream_t stream);
  ~Ticket();
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;

  // Below kTicketSlots; -1 where there is none, because all are taken or a recording cannot keep
  // one: then the caller launches without.
  int slot() const { return slot_; }

 private:
  cudaStream_t stream_;
  int slot_ = -1;
  bool recorded_ = false, crowded_ = false;
};

}  // namespace stc::cuda
