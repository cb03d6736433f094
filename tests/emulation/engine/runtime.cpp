// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that the launchers use: streams, graphs, launches.
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <set>

#include "engine.h"

struct EmuUserObject {
  void* p;
  cudaHostFn_t destroy;
  unsigned refs;
};
struct EmuGraph {
  std::vector<emu::Launch> launches;
  std::vector<EmuUserObject*> objects;
};
// Complete when as many launches of its stream have ended as there were when it was recorded.
struct EmuEvent {
  std::shared_ptr<uint64_t> ended;
  uint64_t wanted = 0;
};
struct EmuStream {
  unsigned long long id = 0;
  std::deque<emu::Launch*> queue;
  EmuGraph* recording = nullptr;
  unsigned long long recording_id = 0;
  uint64_t launched = 0;
  std::shared_ptr<uint64_t> ended = std::make_shared<uint64_t>(0);
  bool destroyed = false;  // and still there while its launches are
};

namespace emu {
namespace {
EmuStream null_stream;
std::vector<EmuStream*>& streams() {
  static std::vector<EmuStream*> all = [] {
    null_stream.id = 1;
    return std::vector<EmuStream*>{&null_stream};
  }();
  return all;
}
unsigned long long next_stream = 10, next_recording = 1000;
uint32_t batch = 1;
std::map<const void*, int> opted_in;
std::set<const void*> launched;
cudaError_t last_error = cudaSuccess;

EmuStream* stream_of(cudaStream_t s) { return s == nullptr ? streams()[0] : s; }

cudaError_t fail(cudaError_t e) {
  last_error = e;
  return e;
}

void enqueue(EmuStream* s, const Launch& launch) {
  if (s->recording != nullptr) {
    s->recording->launches.push_back(launch);
    return;
  }
  auto* own = new Launch(launch);
  launch_infos.push_back({batch, s->id, own->fn});
  own->id = static_cast<uint32_t>(launch_infos.size() - 1);
  s->queue.push_back(own);
  ++s->launched;
}

void finish(EmuStream* s) {
  delete s->queue.front();
  s->queue.pop_front();
  ++*s->ended;
}

void shuffle_blocks(Launch* launch) {
  launch->order.resize(launch->blocks);
  for (uint32_t i = 0; i < launch->blocks; ++i) launch->order[i] = i;
  const uint64_t how = draw() % 4;  // of these, two orders at random, one up, one down
  if (how < 2) {
    for (uint32_t i = launch->blocks; i > 1; --i) {
      std::swap(launch->order[i - 1], launch->order[draw() % i]);
    }
  } else if (how == 2) {
    std::reverse(launch->order.begin(), launch->order.end());
  }
}

// Whether the stream has a launch under way or to begin with. Fills run at once.
bool open_head(EmuStream* s) {
  while (!s->queue.empty()) {
    Launch* head = s->queue.front();
    if (head->opened) return true;
    head->opened = true;
    ++stats.launches;
    if (head->fn != nullptr) {
      launched.insert(head->fn);
      shuffle_blocks(head);
      return true;
    }
    if (head->fill_bytes > 0) host_fill(head);
    finish(s);
  }
  return false;
}

std::vector<EmuStream*> streams_with_blocks_to_start() {
  std::vector<EmuStream*> found;
  for (EmuStream* s : streams()) {
    if (open_head(s) && s->queue.front()->next < s->queue.front()->blocks) found.push_back(s);
  }
  return found;
}

void forget_destroyed_streams() {
  std::erase_if(streams(), [](EmuStream* s) {
    const bool gone = s->destroyed && s->queue.empty();
    if (gone) delete s;
    return gone;
  });
}
}  // namespace

std::vector<const void*> launched_kernels() { return {launched.begin(), launched.end()}; }

void synchronize() {
  seed_draws(config.seed);
  std::vector<Worker*> busy;
  for (;;) {
    std::vector<EmuStream*> unstarted = streams_with_blocks_to_start();
    while (!unstarted.empty() && static_cast<int>(busy.size()) < config.resident) {
      const size_t pick = draw() % unstarted.size();
      Launch* l = unstarted[pick]->queue.front();
      busy.push_back(start_block(l, l->order[l->next++]));
      busy.back()->stream = unstarted[pick];
      if (l->next == l->blocks) unstarted.erase(unstarted.begin() + static_cast<long>(pick));
    }
    if (busy.empty()) break;
    const size_t pick = draw() % busy.size();
    EmuStream* s = busy[pick]->stream;
    if (!take_turn(busy[pick])) continue;
    busy.erase(busy.begin() + static_cast<long>(pick));
    if (++s->queue.front()->done == s->queue.front()->blocks) finish(s);
  }
  forget_destroyed_streams();
  ++batch;
}

cudaStream_t new_stream() {
  auto* s = new EmuStream;
  s->id = next_stream++;
  streams().push_back(s);
  return s;
}
void delete_stream(cudaStream_t s) {
  s->destroyed = true;
  forget_destroyed_streams();
}
void begin_capture(cudaStream_t s) {
  s->recording = new EmuGraph;
  s->recording_id = next_recording++;
}
cudaGraph_t end_capture(cudaStream_t s) {
  EmuGraph* g = s->recording;
  s->recording = nullptr;
  return g;
}
void launch_graph(cudaGraph_t g, cudaStream_t s) {
  for (const Launch& l : g->launches) enqueue(stream_of(s), l);
}
void destroy_graph(cudaGraph_t g) {
  for (EmuUserObject* o : g->objects) cudaUserObjectRelease(o, 1);
  delete g;
}
}  // namespace emu

using namespace emu;

__attribute__((no_sanitize("address"))) static void copy_params(char* to, const char* from) {
  for (size_t i = 0; i < kParamBytes; ++i) {
    to[i] = from[i];
    __asm__ volatile("" ::: "memory");  // stays a loop: the source is a variable of unknown size
  }
}

cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t s) {
  if (grid.x == 0 || grid.x > 2147483647u || grid.y != 1 || grid.z != 1 || block.x == 0 ||
      block.x > 1024 || block.y != 1 || block.z != 1) {
    return fail(cudaErrorInvalidConfiguration);
  }
  const auto opted = opted_in.find(f);
  const size_t most = opted == opted_in.end() ? 48 * 1024 : static_cast<size_t>(opted->second);
  if (shared > most) return fail(cudaErrorInvalidValue);
  Launch l;
  l.fn = f;
  l.grid = grid;
  l.block = block;
  l.shared = shared;
  l.blocks = grid.x;
  copy_params(l.params, static_cast<const char*>(args[0]));
  enqueue(stream_of(s), l);
  return cudaSuccess;
}
cudaError_t emu_func_set_attribute(const void* f, cudaFuncAttribute, int v) {
  if (v < 0 || static_cast<size_t>(v) > config.max_shared) return fail(cudaErrorInvalidValue);
  opted_in[f] = std::max(v, opted_in[f]);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr, int) {
  *v = config.multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaStreamGetId(cudaStream_t s, unsigned long long* id) {
  *id = stream_of(s)->id;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph) {
  EmuStream* own = stream_of(s);
  *status = own->recording != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (own->recording != nullptr && id != nullptr) *id = own->recording_id;
  if (own->recording != nullptr && graph != nullptr) *graph = own->recording;
  return cudaSuccess;
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t* o, void* p, cudaHostFn_t destroy, unsigned refs,
                                 unsigned) {
  *o = new EmuUserObject{p, destroy, refs};
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t o, unsigned count) {
  o->refs -= count;
  if (o->refs == 0) {
    o->destroy(o->p);
    delete o;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned count,
                                      unsigned flags) {
  if (flags != cudaGraphUserObjectMove) o->refs += count;
  g->objects.push_back(o);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) {
  Launch l;
  l.fill = p;
  l.fill_value = v;
  l.fill_bytes = n;
  enqueue(stream_of(s), l);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  *e = new EmuEvent;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  EmuStream* own = stream_of(s);
  if (own->recording != nullptr) return fail(cudaErrorStreamCaptureUnsupported);
  *e = {own->ended, own->launched};
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  return e->ended == nullptr || *e->ended >= e->wanted ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete e;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(*mode, current);
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
