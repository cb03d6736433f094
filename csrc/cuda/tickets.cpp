// SPDX-License-Identifier: Apache-2.0
#include "tickets.h"

#include <memory>

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

}  // namespace

int ticket_slot(cudaStream_t stream) {
  LaunchOrder order = {};
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  unsigned long long id = 0, recording = 0;
  if (cudaGetDevice(&order.device) != cudaSuccess || cudaStreamGetId(stream, &id) != cudaSuccess ||
      cudaStreamGetCaptureInfo(stream, &capture, &recording, &graph) != cudaSuccess ||
      capture == cudaStreamCaptureStatusInvalidated) {
    return -1;  // the launch that follows meets the same error and reports it
  }
  order.stream = id;
  order.recorded = capture == cudaStreamCaptureStatusActive;
  order.recording = order.recorded ? recording : 0;
  const TicketSlots::Found found = slots().find(order);
  if (found.fresh && order.recorded && !keep_with_graph(graph, order)) {
    cudaGetLastError();  // the recording is as good as before
    return -1;
  }
  return found.slot;
}

}  // namespace stc::cuda
