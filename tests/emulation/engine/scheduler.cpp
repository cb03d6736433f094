// SPDX-License-Identifier: Apache-2.0
// Threads of a block are fibers of one host thread, blocks are host threads of which one runs at a
// time, and who runs next is drawn from the seeded generator. See README.md.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <semaphore>
#include <thread>

#include "engine.h"

#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

Fiber* cur = nullptr;

// ---- fibers ----
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

namespace {

// The program's own thread-local block: how far below the thread pointer it begins, and its size.
// The rule is that of _dl_determine_tlsoffset in glibc.
struct TlsBlock {
  size_t below_tp = 0, bytes = 0;
};
const TlsBlock& tls_block() {
  static const TlsBlock block = [] {
    TlsBlock b;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& h = info->dlpi_phdr[i];
            if (h.p_type != PT_TLS) continue;
            const size_t first = -h.p_vaddr & (h.p_align - 1);
            auto* b = static_cast<TlsBlock*>(out);
            b->below_tp = (h.p_memsz - first + h.p_align - 1) / h.p_align * h.p_align + first;
            b->bytes = h.p_memsz;
          }
          return 1;  // the program itself comes first
        },
        &b);
    return b;
  }();
  return block;
}

std::binary_semaphore main_turn(0);
std::vector<Worker*> idle_workers;
uint32_t next_generation = 1;

}  // namespace

struct Worker::Impl {
  std::thread thread;
  std::binary_semaphore turn{0};
  bool quit = false;
};

void ready(Fiber* f) {
  f->state = State::kReady;
  f->block->ready.push_back(f->tid);
}

// From a fiber back to the scheduler of its block.
void leave(Fiber* f) {
  ++stats.switches;
  Worker* w = f->block->worker;
#ifdef EMU_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(f->state == State::kDone ? nullptr : &fake, w->host_stack,
                                 w->host_stack_size);
#endif
  emu_switch(&f->sp, w->scheduler_sp);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void maybe_switch(unsigned one_in) {
  if (one_in <= 1 || draw() % one_in == 0) {
    ready(cur);
    leave(cur);
  }
}

namespace {

struct Blob {
  alignas(8) char bytes[kParamBytes];
};

void finish_thread(Fiber* f);

void fiber_main() {
  Fiber* f = cur;
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &f->block->worker->host_stack,
                                  &f->block->worker->host_stack_size);
#endif
  // By the ABI of x86-64, what is larger than two registers lies on the stack, whatever its type.
  const auto kernel = reinterpret_cast<void (*)(Blob)>(const_cast<void*>(f->block->launch->fn));
  kernel(*reinterpret_cast<const Blob*>(f->block->launch->params));
  finish_thread(f);
  f->state = State::kDone;
  leave(f);
  std::abort();
}

void prepare(Fiber* f, char* top) {
  auto* sp = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
  *--sp = 0;  // where fiber_main would return to; keeps the alignment of a call
  *--sp = reinterpret_cast<uint64_t>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--sp = 0;
  f->sp = sp;
}

void release_barrier(Block* b) {
  const void* site = nullptr;
  for (int i = 0; i < b->threads; ++i) {
    Fiber* f = &b->worker->fibers[i];
    if (f->state != State::kAtBarrier) continue;
    if (site == nullptr) site = f->site;
    if (f->site != site) report("threads of a block at different barriers", f->site, "");
    if (!f->acquired.empty()) {
      if (b->know.size() < f->acquired.size()) b->know.resize(f->acquired.size(), 0);
      for (size_t k = 0; k < f->acquired.size(); ++k)
        b->know[k] = std::max(b->know[k], f->acquired[k]);
      f->acquired.clear();
    }
  }
  ++b->epoch;
  b->arrived = 0;
  for (int i = 0; i < b->threads; ++i) {
    Fiber* f = &b->worker->fibers[i];
    if (f->state == State::kAtBarrier && f != cur) ready(f);
  }
  if (cur != nullptr && cur->block == b && cur->state == State::kAtBarrier)
    cur->state = State::kRunning;
}

void finish_thread(Fiber* f) {
  Block* b = f->block;
  if (!f->copies.empty()) report("thread ends with copies under way (cp.async)", b->launch->fn, "");
  f->state = State::kDone;
  ++b->exited;
  if (b->arrived > 0 && b->arrived == b->threads - b->exited) {
    report("thread ends while others of its block wait at a barrier", b->launch->fn, "");
    release_barrier(b);
  }
  const int first = f->tid / 32 * 32;
  for (int i = first; i < first + 32 && i < b->threads; ++i) {
    Fiber* g = &b->worker->fibers[i];
    if (g->state == State::kAtWarp && complete_warp(g)) ready(g);
  }
}

void describe_deadlock(Block* b) {
  std::map<std::string, int> states;
  for (int i = 0; i < b->threads; ++i) {
    const Fiber& f = b->worker->fibers[i];
    char text[96];
    std::snprintf(text, sizeof text, "%s@%p",
                  f.state == State::kAtBarrier ? "barrier"
                  : f.state == State::kAtWarp  ? "warp-op"
                                               : "ended",
                  f.site);
    ++states[f.state == State::kDone ? "ended" : text];
  }
  std::string all;
  for (const auto& [what, n] : states) all += std::to_string(n) + " " + what + "; ";
  cur = &b->worker->fibers[0];
  report("deadlock", b->launch->fn, all);
  cur = nullptr;
}

// One turn of a block; true when it has ended.
bool run_slice(Worker* w) {
  Block* b = &w->block;
  int64_t budget = 1 + static_cast<int64_t>(draw() % static_cast<uint64_t>(2 * config.slice));
  while (b->exited < b->threads) {
    if (b->ready.empty()) {
      describe_deadlock(b);
      return true;
    }
    if (budget-- <= 0) return false;
    const size_t pick = draw() % b->ready.size();
    const int tid = b->ready[pick];
    b->ready[pick] = b->ready.back();
    b->ready.pop_back();
    Fiber* f = &w->fibers[tid];
    f->state = State::kRunning;
    cur = f;
#ifdef EMU_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, f->stack, kStack);
#endif
    emu_switch(&w->scheduler_sp, f->sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    cur = nullptr;
  }
  return true;
}

void worker_main(Worker* w) {
  w->thread_pointer = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
  w->tls_lo = w->thread_pointer - tls_block().below_tp;
  w->tls_hi = w->tls_lo + tls_block().bytes;
#ifdef EMU_HOOKS
  w->shadow = static_cast<SharedCell*>(
      mmap(nullptr, (tls_block().bytes / 2 + 8) * sizeof(SharedCell), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
#endif
  for (;;) {
    w->impl->turn.acquire();
    if (w->impl->quit) return;
    if (w->fresh) {
      w->fresh = false;
      std::memset(reinterpret_cast<void*>(w->tls_lo), 0xff, tls_block().bytes);
    }
    w->ended = run_slice(w);
    main_turn.release();
  }
}

Worker* new_worker() {
  auto* w = new Worker;
  w->stacks = static_cast<char*>(mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  w->fibers.resize(kMaxThreads);
  for (int i = 0; i < kMaxThreads; ++i) {
    w->fibers[i].tid = i;
    w->fibers[i].stack = w->stacks + kStack * static_cast<size_t>(i);
    w->fibers[i].block = &w->block;
  }
  w->block.worker = w;
  w->impl = new Worker::Impl;
  w->impl->thread = std::thread(worker_main, w);
  return w;
}

}  // namespace

Worker* start_block(Launch* launch, uint32_t index) {
  if (idle_workers.empty()) idle_workers.push_back(new_worker());
  Worker* w = idle_workers.back();
  idle_workers.pop_back();
  Block* b = &w->block;
  b->launch = launch;
  b->index = index;
  b->generation = next_generation++;
  b->epoch = 1;
  b->threads = static_cast<int>(launch->block.x);
  b->exited = b->arrived = 0;
  b->know.clear();
  b->ready.clear();
  for (int i = 0; i < b->threads; ++i) {
    Fiber* f = &w->fibers[i];
    f->copies.clear();
    f->acquired.clear();
    f->seen.clear();
    f->fence_epoch = 0;
    f->site = nullptr;
    prepare(f, f->stack + kStack - 64);
    ready(f);
  }
  w->fresh = true;
  ++stats.blocks;
  stats.threads += static_cast<uint64_t>(b->threads);
  return w;
}

bool take_turn(Worker* w) {
  w->impl->turn.release();
  main_turn.acquire();
  if (w->ended) idle_workers.push_back(w);
  return w->ended;
}

void sync_threads(const void* site) {
  Fiber* f = cur;
  Block* b = f->block;
  ++stats.barriers;
  if (b->exited > 0)
    report("barrier after threads of the block have ended", site, std::to_string(b->exited));
  f->site = site;
  f->state = State::kAtBarrier;
  ++b->arrived;
  if (b->arrived == b->threads - b->exited) {
    release_barrier(b);
    maybe_switch(2);
  } else {
    leave(f);
  }
}

}  // namespace emu
