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

  explicit TicketSlots(int count) : slots_(count) {
    for (int slot = count - 1; slot >= 0; --slot) free_.push_back(slot);
  }

  // The slot of an order, which is its own until it is given back or, of a stream, taken over: no
  // sooner than after `launched`. `has_ended(slot)` is asked of a few that were marked there, and
  // with no lock held: it asks the GPU's driver, which may be waiting for `give_back`.
  template <typename HasEnded>
  Found find(const LaunchOrder& order, const HasEnded& has_ended) {
    std::vector<Asked> asked;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const Found found = take(order);
      if (found.slot >= 0) return found;
      asked = idle_perhaps(order.device);
    }
    for (const Asked& one : asked) {
      if (!has_ended(one.slot)) continue;
      const std::lock_guard<std::mutex> lock(mutex_);
      const Slot& slot = slots_[one.slot];
      if (slot.uses != one.uses || slot.launching > 0) continue;  // its stream goes on meanwhile
      release(one.owner);
      return take(order);
    }
    return {-1, false, true};
  }

  // After each `find` for a stream, once its launch is under way; marked: `has_ended` can tell.
  void launched(int slot, bool marked) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --slots_[slot].launching;
    slots_[slot].marked = marked;
  }

  void give_back(const LaunchOrder& order) {
    const std::lock_guard<std::mutex> lock(mutex_);
    release(order);
  }

 private:
  static constexpr size_t kAsked = 8;  // of one call: asking takes time

  struct Slot {
    uint64_t uses = 0;  // changes with each owner and each launch
    int launching = 0;  // calls between `find` and `launched`
    bool marked = false;
  };
  struct Asked {
    LaunchOrder owner;
    int slot;
    uint64_t uses;
  };

  Found take(const LaunchOrder& order) {
    const bool crowded = free_.size() * 2 <= slots_.size();
    const auto known = taken_.find(order);
    const bool fresh = known == taken_.end();
    if (fresh && free_.empty()) return {-1, false, crowded};
    const int number = fresh ? free_.back() : known->second;
    Slot& slot = slots_[number];
    if (fresh) {
      free_.pop_back();
      taken_.emplace(order, number);
      slot.marked = false;
    }
    ++slot.uses;
    if (!order.recorded) ++slot.launching;
    return {number, fresh, crowded};
  }

  void release(const LaunchOrder& order) {
    const auto known = taken_.find(order);
    if (known == taken_.end()) return;
    free_.push_back(known->second);
    taken_.erase(known);
  }

  // The next few slots of streams of a device (its counters are memory of its own) whose launches
  // may have ended.
  std::vector<Asked> idle_perhaps(int device) {
    std::vector<Asked> found;
    auto other = taken_.upper_bound(asked_last_);
    for (size_t n = 0; n < taken_.size() && found.size() < kAsked; ++n, ++other) {
      if (other == taken_.end()) other = taken_.begin();
      const Slot& slot = slots_[other->second];
      if (other->first.recorded || other->first.device != device) continue;
      if (slot.launching > 0 || !slot.marked) continue;
      found.push_back({other->first, other->second, slot.uses});
      asked_last_ = other->first;
    }
    return found;
  }

  std::mutex mutex_;
  std::map<LaunchOrder, int> taken_;
  std::vector<int> free_;
  std::vector<Slot> slots_;
  LaunchOrder asked_last_ = {};
};

}  // namespace stc
