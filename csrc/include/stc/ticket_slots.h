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

// Hands out slots; any thread may ask. A recording says when it is gone. A stream does not: when
// all slots are taken, one of a stream whose launches have ended goes to the next who asks.
class TicketSlots {
 public:
  struct Found {
    int slot;      // -1: all are taken
    bool fresh;    // was not this order's before
    bool crowded;  // `launched` should know when the launch has ended
  };

  explicit TicketSlots(int count) : count_(count), launching_(count), marked_(count) {
    for (int slot = count - 1; slot >= 0; --slot) free_.push_back(slot);
  }

  // The slot of an order, which is its own until it is given back or, of a stream, taken over: no
  // sooner than after `launched`. `has_ended(slot)` is asked of a few that were marked there.
  template <typename HasEnded>
  Found find(const LaunchOrder& order, const HasEnded& has_ended) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = taken_.find(order);
    const bool fresh = known == taken_.end();
    const bool crowded = free_.size() * 2 <= static_cast<size_t>(count_);
    if (fresh && free_.empty()) take_over(order, has_ended);
    if (fresh && free_.empty()) return {-1, false, crowded};
    const int slot = fresh ? free_.back() : known->second;
    if (fresh) {
      taken_.emplace(order, slot);
      free_.pop_back();
      marked_[slot] = false;
    }
    if (!order.recorded) ++launching_[slot];
    return {slot, fresh, crowded};
  }

  // After each `find` for a stream, once its launch is under way; marked: `has_ended` can tell.
  void launched(int slot, bool marked) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --launching_[slot];
    marked_[slot] = marked;
  }

  void give_back(const LaunchOrder& order) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = taken_.find(order);
    if (known == taken_.end()) return;
    free_.push_back(known->second);
    taken_.erase(known);
  }

 private:
  static constexpr int kAsked = 8;  // of one call: asking takes time

  // Frees the slot of a stream of the same device, if one of the next few is idle.
  template <typename HasEnded>
  void take_over(const LaunchOrder& order, const HasEnded& has_ended) {
    auto other = taken_.upper_bound(asked_last_);
    int asked = 0;
    for (size_t n = 0; n < taken_.size() && asked < kAsked; ++n, ++other) {
      if (other == taken_.end()) other = taken_.begin();
      const int slot = other->second;
      if (other->first.recorded || other->first.device != order.device) continue;
      if (launching_[slot] > 0 || !marked_[slot]) continue;
      ++asked;
      asked_last_ = other->first;
      if (!has_ended(slot)) continue;
      free_.push_back(slot);
      taken_.erase(other);
      return;
    }
  }

  std::mutex mutex_;
  int count_;
  std::map<LaunchOrder, int> taken_;
  std::vector<int> free_;
  std::vector<int> launching_;  // by slot: calls between `find` and `launched`
  std::vector<char> marked_;    // by slot
  LaunchOrder asked_last_ = {};
};

}  // namespace stc
