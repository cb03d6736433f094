// SPDX-License-Identifier: Apache-2.0
// How the tokens of a frame are shared among the blocks and warps that compute their cosines.
#pragma once

#include <cstdint>

#include "stc/selection_key.h"

namespace stc {

constexpr int kCosineThreads = 512;
constexpr int kCosineWarps = kCosineThreads / 32;
//! loads of either input that a lane has on its way at once
constexpr int kCosineUnroll = 2;
constexpr int kLargestTeam = 8;

// Warps that share a token: so many that all loads of a row are on their way at once, if 8 are
// enough. A rule of the channels alone, since the order of the sums follows from it.
STC_ANYWHERE int cosine_team(int64_t channels, int channels_per_load) {
  const int64_t per_warp = 32 * kCosineUnroll * channels_per_load;
  int team = 1;
  while (team < kLargestTeam && team * per_warp < channels) team *= 2;
  return team;
}

struct FrameBlocks {
  int64_t blocks;  // of a frame
  int64_t tokens;  // of a block, the last of a frame may have fewer
};

// Shares `tokens` among at most `most` blocks whose warps take `at_once` tokens in a round, and
// among one block in any case.
inline FrameBlocks frame_blocks(int64_t tokens, int64_t at_once, int64_t most) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t rounds = up(up(tokens, at_once), most < 1 ? 1 : most);
  const int64_t of_block = at_once * (rounds < 1 ? 1 : rounds);
  const int64_t blocks = up(tokens, of_block);
  return {blocks < 1 ? 1 : blocks, of_block};
}

}  // namespace stc
