// SPDX-License-Identifier: Apache-2.0
// Inside of the emulator.
#pragma once
#include <string>
#include <vector>

#include "emu.h"

namespace emu {

constexpr size_t kParamBytes = 1024;
#ifdef EMU_ASAN
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr int kMaxThreads = 1024;

enum class State : int { kReady, kRunning, kAtBarrier, kAtWarp, kDone };

struct Block;
struct Worker;

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;
  Block* block = nullptr;
  int tid = 0;
  State state = State::kDone;
  const void* site = nullptr;
  WarpOp op = WarpOp::kNone;
  unsigned mask = 0;
  uint64_t in = 0, out = 0;
  int param = 0, width = 32;
  std::vector<AsyncCopy> copies;
  uint32_t fence_epoch = 0;              // what was before it is released by the next atomic
  std::vector<uint32_t> seen, acquired;  // by atomics; the same after a fence
};

struct Launch {
  const void* fn = nullptr;
  dim3 grid, block;
  size_t shared = 0;
  uint32_t blocks = 0, next = 0, done = 0, id = 0;
  bool opened = false;
  std::vector<uint32_t> order;
  void* fill = nullptr;
  int fill_value = 0;
  size_t fill_bytes = 0;
  alignas(16) char params[kParamBytes];
};

struct Block {
  Launch* launch = nullptr;
  Worker* worker = nullptr;
  uint32_t index = 0, generation = 0, epoch = 1;
  int threads = 0, exited = 0, arrived = 0;
  std::vector<int> ready;
  std::vector<uint32_t> know;  // by block of the same launch: all that it did before this epoch
};

struct SharedCell {
  uint32_t generation, write_epoch, read_epoch;
  uint32_t write_site, read_site;
  int16_t writer, reader;  // reader -2: several
  uint8_t async, written, atomic;
};

struct Worker {
  struct Impl;
  Impl* impl = nullptr;
  void* scheduler_sp = nullptr;
  const void* host_stack = nullptr;
  size_t host_stack_size = 0;
  uintptr_t tls_lo = 0, tls_hi = 0, thread_pointer = 0;
  SharedCell* shadow = nullptr;
  char* stacks = nullptr;
  std::vector<Fiber> fibers;
  Block block;
  EmuStream* stream = nullptr;
  bool fresh = false, ended = false;
};

struct GlobalCell {
  uint32_t write_launch = 0, write_block = 0, write_epoch = 0, write_site = 0;
  uint32_t read_launch = 0, read_block = 0, read_epoch = 0, read_site = 0;
  int16_t writer = -1, reader = -1;
  bool atomic = false, written = false, many_readers = false, many_blocks = false;
};

struct Memory {
  uintptr_t lo, hi;
  size_t unit;
  bool read_only, written;
  std::string name;
  std::vector<GlobalCell> cells;
};

struct DynamicShared {
  size_t below_tp, bytes;
  std::string name;
};
struct LaunchInfo {
  uint32_t batch = 0;
  unsigned long long stream = 0;
  const void* fn = nullptr;
};

extern Fiber* cur;
extern std::vector<Memory*> memories;
extern uint64_t memory_version;  // changes whenever `memories` does
extern std::vector<DynamicShared> dynamic_shared;
extern std::vector<LaunchInfo> launch_infos;

void seed_draws(uint64_t seed);
uint64_t draw();
void report(const char* kind, const void* site, const std::string& detail);
std::string name_of(const void* fn);
Memory* find_memory(uintptr_t a);
// Fibers: `ready` may run again; `leave` goes back to the scheduler of its block.
void ready(Fiber* f);
void leave(Fiber* f);
void maybe_switch(unsigned one_in);
bool complete_warp(Fiber* f);
// Blocks: a turn runs one for a while, and is true when the block has ended.
Worker* start_block(Launch* launch, uint32_t index);
bool take_turn(Worker* w);
// Whether a launch has ended before another begins.
bool ordered(uint32_t before, uint32_t after);
void compute_matrix(WarpOp op, Fiber* lanes);
void access(uintptr_t a, size_t n, bool write, bool atomic, const void* site);
void mark_async(uintptr_t a, size_t n, bool pending);
void host_fill(const Launch* l);

}  // namespace emu
