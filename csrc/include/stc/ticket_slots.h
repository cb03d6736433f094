// SPDX-License-Identifier: Apache-2.0
// Who counts where, so that two launches that may run at once never count in the same place.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

namespace stc {

//! launches that may be under way at once with counters of their own, and the frames of each
constexpr int kTicketSlots = 1024;
constexpr int kTicketFrames = 64;

// Launches that run one after the other: those on one stream of a device or, as those of a graph
// run whenever it is replayed, those that one recording of one stream has made.
struct LaunchOrder {
  int device;
  bool recorded;
  uint64_t recording;
  uint64_t stream;

  bool operator<(const LaunchOrder& other) const {
    return std::tie(device, recorded, recording, stream) <
           std::tie(other.device, other.recorded, other.recording, other.stream);
  }
};

// Hands out slots; any thread may ask.
class TicketSlots {
 public:
  struct Found {
    int slot;    // -1: all are taken
    bool fresh;  // was not this order's before
  };

  explicit TicketSlots(int count) {
    for (int slot = count - 1; slot >= 0; --slot) free_.push_back(slot);
  }

  // The slot of an order, which is its own until it is given back.
  Found find(const LaunchOrder& order) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = taken_.find(order);
    if (known != taken_.end()) return {known->second, false};
    if (free_.empty()) return {-1, false};
    const int slot = free_.back();
    taken_.emplace(order, slot);
    free_.pop_back();
    return {slot, true};
  }

  void give_back(const LaunchOrder& order) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = taken_.find(order);
    if (known == taken_.end()) return;
    free_.push_back(known->second);
    taken_.erase(known);
  }

 private:
  std::mutex mutex_;
  std::map<LaunchOrder, int> taken_;
  std::vector<int> free_;
};

}  // namespace stc
