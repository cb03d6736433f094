// SPDX-License-Identifier: Apache-2.0
// What the kernels decide on the host or share with it; run by CTest (-DSTC_BUILD_TESTS=ON).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "stc/attention_params.h"
#include "stc/cosine_plan.h"
#include "stc/pruning_params.h"
#include "stc/selection_key.h"
#include "stc/ticket_slots.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, int line) {
  if (holds) return;
  std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, line, what);
  ++failures;
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void keys_order_as_scores_do() {
  using stc::baseline::selection_key;
  const std::vector<float> ascending = {-kInfinity, -1e38f, -1.0f, -1e-40f, 0.0f,
                                        1e-40f,     0.5f,   1.0f,  1e38f,   kInfinity};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT(selection_key(ascending[i - 1], false) < selection_key(ascending[i], false));
    EXPECT(selection_key(ascending[i - 1], true) > selection_key(ascending[i], true));
  }
  for (const bool highest : {false, true}) {
    EXPECT(selection_key(0.0f, highest) == selection_key(-0.0f, highest));
    for (const float score : ascending) {
      // Key 0 belongs to pinned tokens; NaN is chosen first among the lowest, last otherwise.
      EXPECT(selection_key(score, highest) > 0);
      EXPECT((selection_key(kNaN, highest) < selection_key(score, highest)) == !highest);
    }
  }
}

void pieces_cover_a_frame() {
  const int64_t piece = stc::kCompactPiece;
  EXPECT(stc::pieces_per_frame(0) == 0);
  EXPECT(stc::pieces_per_frame(1) == 1);
  EXPECT(stc::pieces_per_frame(piece) == 1);
  EXPECT(stc::pieces_per_frame(piece + 1) == 2);
  EXPECT(stc::pieces_per_frame((int64_t{1} << 31) - 1) == (int64_t{1} << 31) / piece);
}

void a_team_has_all_loads_of_a_row_at_once() {
  using stc::cosine_team;
  EXPECT(cosine_team(0, 8) == 1);
  EXPECT(cosine_team(512, 8) == 1);
  EXPECT(cosine_team(513, 8) == 2);
  EXPECT(cosine_team(1152, 8) == 4);
  EXPECT(cosine_team(3584, 8) == 8);
  EXPECT(cosine_team(int64_t{1} << 40, 1) == stc::kLargestTeam);
}

void blocks_cover_a_frame() {
  for (const int64_t tokens : {0, 1, 4, 5, 729, 4784, 11264}) {
    for (const int64_t at_once : {2, 4, 16}) {
      for (const int64_t most : {0, 1, 3, 264}) {
        const stc::FrameBlocks share = stc::frame_blocks(tokens, at_once, most);
        EXPECT(share.blocks >= 1);
        EXPECT(share.blocks == 1 || share.blocks <= most);
        EXPECT(share.tokens % at_once == 0);
        EXPECT(share.blocks * share.tokens >= tokens);
        EXPECT(tokens == 0 || (share.blocks - 1) * share.tokens < tokens);  // none is empty
      }
    }
  }
  EXPECT(stc::frame_blocks(729, 4, 264).blocks == 183);
}

void launches_that_may_meet_have_slots_of_their_own() {
  stc::TicketSlots slots(3);
  const auto find = [&](const stc::LaunchOrder& order) {
    return slots.find(order, [](int) { return false; });
  };
  const stc::LaunchOrder stream = {0, false, 0, 7}, other_device = {1, false, 0, 7};
  const stc::LaunchOrder recording = {0, true, 5, 7}, another = {0, true, 6, 7};
  const auto first = find(stream);
  EXPECT(first.fresh && first.slot >= 0 && first.slot < 3);
  EXPECT(find(stream).slot == first.slot && !find(stream).fresh);
  const int taken = find(other_device).slot, recorded = find(recording).slot;
  EXPECT(taken != first.slot && recorded != first.slot && recorded != taken && recorded >= 0);
  EXPECT(find(another).slot == -1 && !find(another).fresh);
  slots.give_back(another);  // has none
  EXPECT(find(another).slot == -1);
  slots.give_back(recording);
  EXPECT(find(another).slot == recorded);
  EXPECT(find(recording).slot == -1);
  EXPECT(find(stream).slot == first.slot);
}

void slots_of_idle_streams_go_to_others() {
  stc::TicketSlots slots(3);
  std::vector<int> ended, asked;
  const auto find = [&](uint64_t stream, int device = 0) {
    return slots.find({device, false, 0, stream}, [&](int slot) {
      asked.push_back(slot);
      return std::find(ended.begin(), ended.end(), slot) != ended.end();
    });
  };
  const auto recorded = slots.find({0, true, 9, 1}, [](int) { return true; });
  const auto one = find(1), two = find(2);
  EXPECT(!recorded.crowded && !one.crowded && two.crowded);
  ended = {recorded.slot, one.slot, two.slot};
  EXPECT(find(3).slot == -1 && asked.empty());  // neither launch is under way yet
  slots.launched(one.slot, false);
  slots.launched(two.slot, true);
  EXPECT(find(3, 1).slot == -1 && asked.empty());  // the memory of another device is another
  ended = {};
  EXPECT(find(3).slot == -1 && asked == std::vector<int>{two.slot});
  ended = {one.slot, two.slot};
  const auto three = find(3);
  EXPECT(three.slot == two.slot && three.fresh);  // nobody knows when the other has ended
  EXPECT(find(2).slot == -1);
  slots.launched(three.slot, true);
  EXPECT(find(2).slot == two.slot && find(1).slot == one.slot);
  EXPECT(find(2).slot == two.slot);  // two threads on one stream
  slots.launched(two.slot, true);
  EXPECT(find(4).slot == -1);
  slots.launched(two.slot, true);
  const auto busy = slots.find({0, false, 0, 5}, [&](int slot) {  // launched while we ask
    slots.launched(find(2).slot, true);
    return slot == two.slot;
  });
  EXPECT(busy.slot == -1);
  EXPECT(find(4).slot == two.slot);
}

void only_aligned_heads_go_to_tensor_cores() {
  alignas(16) static const char storage[64] = {};
  const int64_t width = 72;
  const auto view = [&](int64_t offset) {
    return stc::HeadView{storage + offset, 16 * 729 * width, 16 * width, width, 1};
  };
  stc::AttentionParams p = {};
  p.dtype = stc::DType::kBFloat16;
  p.width = width;
  p.query = p.key = p.value = view(0);
  EXPECT(stc::fits_tensor_cores(p));
  p.dtype = stc::DType::kFloat32;
  EXPECT(!stc::fits_tensor_cores(p));
  p.dtype = stc::DType::kFloat16;
  for (stc::HeadView* part : {&p.query, &p.key, &p.value}) {
    *part = view(2);  // not at a multiple of 16 bytes
    EXPECT(!stc::fits_tensor_cores(p));
    *part = view(0);
    part->token_stride += 4;
    EXPECT(!stc::fits_tensor_cores(p));
    *part = view(0);
    part->channel_stride = 16;
    EXPECT(!stc::fits_tensor_cores(p));
    *part = view(0);
  }
  p.width = 70;
  EXPECT(!stc::fits_tensor_cores(p));
}

}  // namespace

int main() {
  keys_order_as_scores_do();
  pieces_cover_a_frame();
  a_team_has_all_loads_of_a_row_at_once();
  blocks_cover_a_frame();
  launches_that_may_meet_have_slots_of_their_own();
  slots_of_idle_streams_go_to_others();
  only_aligned_heads_go_to_tensor_cores();
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
