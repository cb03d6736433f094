// SPDX-License-Identifier: Apache-2.0
#include "tickets.h"

#include <memory>
#include <mutex>

namespace stc::cuda {

namespace {

// Never destroyed: a graph may outlive the static variables.
TicketSlots& slots() {
  static auto* const all = new TicketSlots(kTicketSlots);
  return *all;
}

void give_back(void* order) {
  const std::unique_ptr<LaunchOrder> owned(static_cast<LaunchOrder*>(order));
  slots().give_back(*owned);
}

// Has the slot given back when the graph, all that was made from it, and its last replay are gone.
bool keep_with_graph(cudaGraph_t graph, const LaunchOrder& order) {
  auto owned = std::make_unique<LaunchOrder>(order);
  cudaUserObject_t object = nullptr;
  if (cudaUserObjectCreate(&object, owned.get(), give_back, 1, cudaUserObjectNoDestructorSync) !=
      cudaSuccess) {
    slots().give_back(order);
    return false;
  }
  owned.release();  // is the object's from here on
  if (cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove) != cudaSuccess) {
    cudaUserObjectRelease(object, 1);
    return false;
  }
  return true;
}

// Of each slot the end of the launches of its stream, once slots are scarce: before, a mark behind
// each launch would cost a microsecond for nothing.
class Ends {
 public:
  bool mark(int slot, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cudaEvent_t& end = ends_[slot];
    if (end == nullptr && cudaEventCreateWithFlags(&end, cudaEventDisableTiming) != cudaSuccess) {
      cudaGetLastError();  // the launch is as good as before
      return false;
    }
    if (cudaEventRecord(end, stream) == cudaSuccess) return true;
    cudaGetLastError();
    cudaEventDestroy(end);  // of another device, to which the slot belonged before
    end = nullptr;
    return false;
  }

  bool are_reached(int slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // Asking is no harm to what another stream may be recording.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) return false;
    const cudaError_t status = cudaEventQuery(ends_[slot]);
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (status == cudaSuccess) return true;
    cudaGetLastError();  // "not ready" is no error
    return false;
  }

 private:
  std::mutex mutex_;
  cudaEvent_t ends_[kTicketSlots] = {};
};

Ends& ends() {
  static auto* const all = new Ends;
  return *all;
}

}  // namespace

Ticket::Ticket(cudaStream_t stream) : stream_(stream) {
  LaunchOrder order = {};
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  unsigned long long id = 0, recording = 0;
  if (cudaGetDevice(&order.device) != cudaSuccess || cudaStreamGetId(stream, &id) != cudaSuccess ||
      cudaStreamGetCaptureInfo(stream, &capture, &recording, &graph) != cudaSuccess ||
      capture == cudaStreamCaptureStatusInvalidated) {
    return;  // the launch that follows meets the same error and reports it
  }
  order.stream = id;
  order.recorded = recorded_ = capture == cudaStreamCaptureStatusActive;
  order.recording = recorded_ ? recording : 0;
  const auto found = slots().find(order, [](int slot) { return ends().are_reached(slot); });
  if (found.fresh && recorded_ && !keep_with_graph(graph, order)) {
    cudaGetLastError();  // the recording is as good as before
    return;
  }
  slot_ = found.slot;
  crowded_ = found.crowded;
}

Ticket::~Ticket() {
  if (slot_ < 0 || recorded_) return;
  slots().launched(slot_, crowded_ && ends().mark(slot_, stream_));
}

}  // namespace stc::cuda
