// SPDX-License-Identifier: Apache-2.0
// The launcher itself, in one unit with a look at its tickets.
#include "select_changed.cu"

#include "ops.h"

uint32_t* ticket_memory(size_t* count) {
  *count = sizeof(stc::cuda::select_tickets) / sizeof(uint32_t);
  return &stc::cuda::select_tickets[0][0];
}

namespace stc::cuda {
// Dynamic shared memory, as the kernels declare it.
thread_local uint32_t shared_keys[58 * 1024];
alignas(1024) thread_local unsigned char shared[232 * 1024];
}  // namespace stc::cuda

void note_tickets() {
  size_t n = 0;
  uint32_t* p = ticket_memory(&n);
  emu::add_memory(p, n * 4, 4, emu::Kind::kInOut, "select_tickets");
  emu::add_dynamic_shared(stc::cuda::shared_keys, sizeof stc::cuda::shared_keys, "shared_keys");
  emu::add_dynamic_shared(stc::cuda::shared, sizeof stc::cuda::shared, "shared");
}
