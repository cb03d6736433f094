// SPDX-License-Identifier: Apache-2.0
// Every plain access of a kernel comes here: the compiler's instrumentation for ThreadSanitizer
// calls these functions instead of that library's. Keeps for each byte of shared memory and each
// element of global memory who wrote and who read it last, and reports what no barrier, fence or
// launch orders.
#include <sys/mman.h>

#include <cstdio>

#include "engine.h"

extern "C" char __executable_start, _end;

namespace emu {

void host_fill(const Launch* l) {
  std::memset(l->fill, l->fill_value, l->fill_bytes);
  Memory* m = find_memory(reinterpret_cast<uintptr_t>(l->fill));
  if (m == nullptr || reinterpret_cast<uintptr_t>(l->fill) + l->fill_bytes > m->hi) {
    report("memset out of bounds", l->fill, "");
    return;
  }
  const size_t first = (reinterpret_cast<uintptr_t>(l->fill) - m->lo) / m->unit;
  for (size_t i = 0; i < l->fill_bytes / m->unit && !m->cells.empty(); ++i) {
    m->cells[first + i].written = true;
    m->cells[first + i].write_launch = l->id;
  }
}

#ifdef EMU_HOOKS

namespace {

std::string sites(uint32_t other) {
  char text[40];
  std::snprintf(text, sizeof text, "with 0x%x", other);
  return text;
}

void shared_access(Fiber* f, uintptr_t a, size_t n, bool write, bool atomic, const void* site) {
  Block* b = f->block;
  Worker* w = b->worker;
  for (const DynamicShared& d : dynamic_shared) {
    const uintptr_t lo = w->thread_pointer - d.below_tp;
    if (a >= lo && a < lo + d.bytes && a + n > lo + b->launch->shared) {
      report("dynamic shared memory out of bounds", site, d.name + "+" + std::to_string(a - lo));
    }
  }
  const size_t first = (a - w->tls_lo) / 2, last = (a + n - 1 - w->tls_lo) / 2;
  const auto me = static_cast<int16_t>(f->tid);
  for (size_t i = first; i <= last; ++i) {
    SharedCell& c = w->shadow[i];
    if (c.generation != b->generation) {
      c = {};
      c.generation = b->generation;
      c.writer = c.reader = -1;
    }
    if (c.async) {
      report("access to shared memory that a cp.async under way will write", site,
             sites(c.write_site));
    }
    if (!write && !c.written) report("read of uninitialised shared memory", site, "");
    if (atomic && !c.written) report("atomic on uninitialised shared memory", site, "");
    const bool after_write =
        c.written && c.write_epoch == b->epoch && c.writer != me && !(atomic && c.atomic);
    if (after_write) {
      report(write ? "race in shared memory: write after write"
                   : "race in shared memory: read after write",
             site, sites(c.write_site) + " of thread " + std::to_string(c.writer));
    }
    if (write) {
      if (!atomic && c.read_epoch == b->epoch && c.reader != -1 && c.reader != me) {
        report("race in shared memory: write after read", site,
               sites(c.read_site) + " of thread " + std::to_string(c.reader));
      }
      if (atomic && c.read_epoch == b->epoch && c.reader != -1 && c.reader != me) {
        report("race in shared memory: atomic after read", site, sites(c.read_site));
      }
      c.written = 1;
      c.write_epoch = b->epoch;
      c.writer = me;
      c.atomic = atomic;
      c.write_site = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(site));
    } else {
      if (c.read_epoch == b->epoch && c.reader != me && c.reader != -1) {
        c.reader = -2;
      } else {
        c.reader = me;
      }
      c.read_epoch = b->epoch;
      c.read_site = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(site));
    }
  }
}

// Whether an access of the past happened before what f does now.
bool before(Fiber* f, uint32_t launch, uint32_t block, int16_t thread, uint32_t epoch) {
  Block* b = f->block;
  if (launch != b->launch->id) return ordered(launch, b->launch->id);
  if (block == b->index) return thread == f->tid || epoch < b->epoch;
  if (block < b->know.size() && epoch < b->know[block]) return true;
  return block < f->acquired.size() && epoch < f->acquired[block];
}

void global_access(Fiber* f, Memory* m, uintptr_t a, size_t n, bool write, bool atomic,
                   const void* site) {
  if (a + n > m->hi)
    report("global memory out of bounds", site, m->name + " end+" + std::to_string(a + n - m->hi));
  if (m->read_only) {
    if (write) report("write to an input", site, m->name);
    return;
  }
  Block* b = f->block;
  const size_t first = (a - m->lo) / m->unit,
               last = std::min((a + n - 1 - m->lo) / m->unit, m->cells.size() - 1);
  for (size_t i = first; i <= last; ++i) {
    GlobalCell& c = m->cells[i];
    if ((!write || atomic) && !c.written && !m->written)
      report("read of uninitialised global memory", site, m->name);
    if (c.write_launch != 0 && !(atomic && c.atomic) &&
        !before(f, c.write_launch, c.write_block, c.writer, c.write_epoch)) {
      report(write ? "race in global memory: write after write"
                   : "race in global memory: read after write",
             site,
             m->name + " " + sites(c.write_site) + " of block " + std::to_string(c.write_block) +
                 " thread " + std::to_string(c.writer));
    }
    if (write) {
      if (c.read_launch != 0) {
        const bool fine = before(f, c.read_launch, c.read_block, c.reader, c.read_epoch) &&
                          !(c.many_blocks && c.read_launch == b->launch->id) &&
                          !(c.many_readers && c.read_launch == b->launch->id &&
                            c.read_block == b->index && c.read_epoch == b->epoch);
        if (!fine) {
          report("race in global memory: write after read", site,
                 m->name + " " + sites(c.read_site) + " of block " + std::to_string(c.read_block) +
                     " thread " + std::to_string(c.reader));
        }
      }
      c.written = true;
      c.write_launch = b->launch->id;
      c.write_block = b->index;
      c.write_epoch = b->epoch;
      c.writer = static_cast<int16_t>(f->tid);
      c.atomic = atomic;
      c.write_site = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(site));
    } else {
      const bool same_launch = c.read_launch == b->launch->id;
      if (!same_launch) c.many_blocks = c.many_readers = false;
      if (same_launch && c.read_block != b->index) c.many_blocks = true;
      if (same_launch && c.read_block == b->index && c.read_epoch == b->epoch) {
        if (c.reader != f->tid) c.many_readers = true;
      } else {
        c.many_readers = false;
      }
      c.read_launch = b->launch->id;
      c.read_block = b->index;
      c.read_epoch = b->epoch;
      c.reader = static_cast<int16_t>(f->tid);
      c.read_site = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(site));
    }
  }
}

int until_switch = 0;

}  // namespace

void mark_async(uintptr_t a, size_t n, bool pending) {
  Worker* w = cur->block->worker;
  for (size_t i = (a - w->tls_lo) / 2; i <= (a + n - 1 - w->tls_lo) / 2; ++i)
    w->shadow[i].async = pending;
}

void access(uintptr_t a, size_t n, bool write, bool atomic, const void* site) {
  Fiber* f = cur;
  if (f == nullptr) return;
  if (a - reinterpret_cast<uintptr_t>(f->stack) < kStack) return;  // its own variables
  ++stats.accesses;
  if (config.access_switch > 0 && --until_switch <= 0) {
    until_switch = 1 + static_cast<int>(draw() % static_cast<uint64_t>(2 * config.access_switch));
    maybe_switch(1);
  }
  Worker* w = f->block->worker;
  if (a >= w->tls_lo && a < w->tls_hi) return shared_access(f, a, n, write, atomic, site);
  static Memory* last = nullptr;
  static uint64_t known = 0;
  if (last == nullptr || known != memory_version || a < last->lo || a >= last->hi) {
    last = find_memory(a);
    known = memory_version;
  }
  if (last != nullptr) return global_access(f, last, a, n, write, atomic, site);
  if (a >= reinterpret_cast<uintptr_t>(&__executable_start) &&
      a < reinterpret_cast<uintptr_t>(&_end)) {
    if (write) report("write to a static variable", site, "");
    return;
  }
  const bool stack = a - reinterpret_cast<uintptr_t>(w->stacks) < kStack * kMaxThreads;
  report(stack ? "access to a variable of another thread" : "access out of bounds", site,
         write ? "write" : "read");
}

#endif

}  // namespace emu

#ifdef EMU_HOOKS
#define HOOK(name, n, write)                                                                   \
  extern "C" void name(void* a) {                                                              \
    if (emu::cur == nullptr) return;                                                           \
    if (reinterpret_cast<uintptr_t>(a) % n != 0)                                               \
      emu::report("misaligned access", __builtin_return_address(0), #n);                       \
    emu::access(reinterpret_cast<uintptr_t>(a), n, write, false, __builtin_return_address(0)); \
  }
HOOK(__tsan_read1, 1, false)
HOOK(__tsan_read2, 2, false)
HOOK(__tsan_read4, 4, false)
HOOK(__tsan_read8, 8, false)
HOOK(__tsan_read16, 16, false)
HOOK(__tsan_write1, 1, true)
HOOK(__tsan_write2, 2, true)
HOOK(__tsan_write4, 4, true)
HOOK(__tsan_write8, 8, true)
HOOK(__tsan_write16, 16, true)
#define HOOK_UNALIGNED(name, n, write)                                                         \
  extern "C" void name(void* a) {                                                              \
    if (emu::cur == nullptr) return;                                                           \
    emu::access(reinterpret_cast<uintptr_t>(a), n, write, false, __builtin_return_address(0)); \
  }
HOOK_UNALIGNED(__tsan_unaligned_read2, 2, false)
HOOK_UNALIGNED(__tsan_unaligned_read4, 4, false)
HOOK_UNALIGNED(__tsan_unaligned_read8, 8, false)
HOOK_UNALIGNED(__tsan_unaligned_read16, 16, false)
HOOK_UNALIGNED(__tsan_unaligned_write2, 2, true)
HOOK_UNALIGNED(__tsan_unaligned_write4, 4, true)
HOOK_UNALIGNED(__tsan_unaligned_write8, 8, true)
HOOK_UNALIGNED(__tsan_unaligned_write16, 16, true)
extern "C" void __tsan_read_range(void* a, size_t n) {
  if (emu::cur != nullptr)
    emu::access(reinterpret_cast<uintptr_t>(a), n, false, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* a, size_t n) {
  if (emu::cur != nullptr)
    emu::access(reinterpret_cast<uintptr_t>(a), n, true, false, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
#endif

#ifdef EMU_HOOKS
// What -fsanitize=alignment calls, here also for null pointers, which it takes for misaligned ones.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void* pointer) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", pointer);
  emu::report("misaligned pointer", __builtin_return_address(0), text);
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(void* data, void* pointer) {
  __ubsan_handle_type_mismatch_v1(data, pointer);
}
#endif
