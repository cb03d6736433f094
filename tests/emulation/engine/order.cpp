// SPDX-License-Identifier: Apache-2.0
// Fences and atomics: what one block may know of another.
#include <algorithm>
#include <unordered_map>

#include "engine.h"

namespace emu {

namespace {
struct SyncPoint {
  uint32_t launch = 0;
  std::vector<uint32_t> released;  // by block: everything before this epoch
};
std::unordered_map<uintptr_t, SyncPoint> sync_points;

void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}
}  // namespace

void fence(int scope) {
  Fiber* f = cur;
  if (scope < 2) return;
  f->fence_epoch = f->block->epoch;
  join(f->acquired, f->seen);
  f->seen.clear();
  maybe_switch(3);
}

uint64_t atomic_update(void* p, size_t bytes, uint64_t value, Atomic how, bool is_signed,
                       const void* site) {
  ++stats.atomics;
  maybe_switch(2);
  Fiber* f = cur;
  Block* b = f->block;
  const auto a = reinterpret_cast<uintptr_t>(p);
  if (a % bytes != 0) report("misaligned atomic", site, "");
#ifdef EMU_HOOKS
  access(a, bytes, true, true, site);
#endif
  if (a < b->worker->tls_lo || a >= b->worker->tls_hi) {
    SyncPoint& s = sync_points[a];
    if (s.launch != b->launch->id) {
      if (s.launch != 0 && !ordered(s.launch, b->launch->id)) {
        report("launches that may run at once use the same counter", site, "");
      }
      s.launch = b->launch->id;
      s.released.clear();
    }
    join(f->seen, s.released);
    if (f->fence_epoch > 0) {
      if (s.released.size() < b->launch->blocks) s.released.resize(b->launch->blocks, 0);
      s.released[b->index] = std::max(s.released[b->index], f->fence_epoch);
      join(s.released, b->know);
    }
  }
  uint64_t old = 0;
  std::memcpy(&old, p, bytes);
  uint64_t now = 0;
  switch (how) {
    case Atomic::kAdd:
      now = old + value;
      break;
    case Atomic::kMax:
      now = (is_signed ? static_cast<int32_t>(old) < static_cast<int32_t>(value) : old < value)
                ? value
                : old;
      break;
    case Atomic::kIncrement:
      now = old >= value ? 0 : old + 1;
      break;
  }
  std::memcpy(p, &now, bytes);
  maybe_switch(2);
  return old;
}

void read_cg(const void* p, size_t n, const void* site) {
#ifdef EMU_HOOKS
  access(reinterpret_cast<uintptr_t>(p), n, false, false, site);
#else
  (void)p, (void)n, (void)site;
#endif
}

size_t to_shared(const void* p) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  const Worker* w = cur->block->worker;
  if (a < w->tls_lo || a >= w->tls_hi) {
    report("__cvta_generic_to_shared of what is not shared memory", __builtin_return_address(0),
           "");
    return 0;
  }
  return a - w->tls_lo;
}
void* from_shared(uint32_t offset) {
  return reinterpret_cast<void*>(cur->block->worker->tls_lo + offset);
}

extern "C" Idx emu_thread_idx() { return {static_cast<unsigned>(cur->tid), 0, 0}; }
extern "C" Idx emu_block_idx() { return {cur->block->index, 0, 0}; }
extern "C" Idx emu_block_dim() { return {cur->block->launch->block.x, 1, 1}; }
extern "C" Idx emu_grid_dim() { return {cur->block->launch->grid.x, 1, 1}; }

bool ordered(uint32_t before, uint32_t after) {
  const LaunchInfo &x = launch_infos[before], &y = launch_infos[after];
  return x.batch < y.batch || (x.stream == y.stream && before < after);
}

}  // namespace emu
