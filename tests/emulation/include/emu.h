// SPDX-License-Identifier: Apache-2.0
// The emulator as its tests see it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace emu {

struct Config {
  uint64_t seed = 1;
  int resident = 8;         // blocks under way at once (of all streams)
  int slice = 64;           // switches of threads, on average, before another block's turn
  int access_switch = 0;    // one in so many plain accesses is followed by a switch; 0: none
  int multiprocessors = 4;  // what cudaDeviceGetAttribute says
  size_t max_shared = 227 * 1024;
};
extern Config config;

// Memory of the emulated GPU. `unit` is the size of an element.
enum class Kind { kInput, kUninitialised, kInOut };
void add_memory(const void* p, size_t bytes, size_t unit, Kind kind, const char* name);
void remove_memory(const void* p);
// Dynamic shared memory: the arrays that kernels declare `extern __shared__`.
void add_dynamic_shared(const void* p, size_t bytes, const char* name);

cudaStream_t new_stream();
void delete_stream(cudaStream_t s);
// All kernels that have run.
std::vector<const void*> launched_kernels();
// Runs everything that was launched on any stream; streams run at once.
void synchronize();

// Graphs: launches between begin and end are recorded.
void begin_capture(cudaStream_t s);
cudaGraph_t end_capture(cudaStream_t s);
void launch_graph(cudaGraph_t g, cudaStream_t s);
void destroy_graph(cudaGraph_t g);

struct Stats {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0, barriers = 0, warp_ops = 0,
           atomics = 0, accesses = 0, async_copies = 0, mma = 0, ldmatrix = 0;
};
extern Stats stats;

// What was found, one line each place; the count of all.
uint64_t findings();
std::string take_findings();
void set_context(const std::string& what);
}  // namespace emu
