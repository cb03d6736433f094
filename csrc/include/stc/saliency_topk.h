// SPDX-License-Identifier: Apache-2.0
// Scores of the tokens of one frame, in two passes around the frame's anchor (the mean unit token).
// The first pass packs the selected channels of each token into float32 rows; a frame of packed
// rows usually stays in the second-level cache, so memory sees one read of the tokens: half of what
// a copy takes. Distances come from dot products: |z-c|^2 = |z|^2 + |c|^2 - 2 z.c.
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

// Packs the selected channels of one token. Up to 16 floats behind them are overwritten: row_pitch
// leaves that much room, so that blocks of different threads never touch each other's rows.
template <typename T>
STC_INLINE void pack_row(const SaliencyParams& p, const T* x, float* out) {
  const int64_t stride = p.tokens.channel_stride;
  int64_t written = 0, c = 0;
  if (p.channel_index == nullptr) {
    if (stride == 1) {
      for (; c + kLanes <= p.channels; c += kLanes) store(out + c, load(x + c));
    }
    for (; c < p.channels; ++c) out[c] = to_float(x[c * stride]);
  } else {
#if defined(__AVX512F__)
    // Stores a whole vector each time: the next one overwrites the lanes that hold no channel.
    if (stride == 1) {
      for (; c + 16 <= p.channels; c += 16) {
        const uint32_t lanes = p.lane_masks[c / 16];
        store(out + written, _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes), load(x + c)));
        written += __builtin_popcount(lanes);
      }
    }
#endif
    const int32_t* index = p.channel_index;
    for (; written < p.selected; ++written) out[written] = to_float(x[index[written] * stride]);
  }
}

struct NormAndDot {
  float norm2, dot;
};

STC_INLINE NormAndDot norm_and_dot(const float* x, const float* anchor, int64_t n) {
  Vec norm2[2] = {}, dot[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    for (int u = 0; u < 2; ++u) {
      const Vec a = load(x + i + u * kLanes);
      norm2[u] += a * a;
      dot[u] += a * load(anchor + i + u * kLanes);
    }
  }
  NormAndDot rest = {0.0f, 0.0f};
  for (; i < n; ++i) {
    rest.norm2 += x[i] * x[i];
    rest.dot += x[i] * anchor[i];
  }
  return {sum(norm2[0] + norm2[1]) + rest.norm2, sum(dot[0] + dot[1]) + rest.dot};
}

STC_INLINE float dot_row(const float* x, const float* anchor, int64_t n) {
  Vec dot[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int u = 0; u < 4; ++u) dot[u] += load(x + i + u * kLanes) * load(anchor + i + u * kLanes);
  }
  float rest = 0.0f;
  for (; i < n; ++i) rest += x[i] * anchor[i];
  return sum((dot[0] + dot[1]) + (dot[2] + dot[3])) + rest;
}

// total += sum of scale[r] * row[r]; kFirst: total = ...
template <int kRows, bool kFirst>
STC_INLINE void add_scaled_rows(const float* const* row, const float* scale, int64_t n,
                                float* total) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec s = load(row[0] + i) * scale[0];
    if constexpr (!kFirst) s += load(total + i);
    for (int r = 1; r < kRows; ++r) s += load(row[r] + i) * scale[r];
    store(total + i, s);
  }
  for (; i < n; ++i) {
    float s = row[0][i] * scale[0];
    if constexpr (!kFirst) s += total[i];
    for (int r = 1; r < kRows; ++r) s += row[r][i] * scale[r];
    total[i] = s;
  }
}

template <bool kFirst>
STC_INLINE void add_group(int count, const float* const* row, const float* scale, int64_t n,
                          float* total) {
  static_assert(kSaliencyGroup == 4, "one case per group size");
  if (count == 4) return add_scaled_rows<4, kFirst>(row, scale, n, total);
  add_scaled_rows<1, kFirst>(row, scale, n, total);
  for (int r = 1; r < count; ++r) add_scaled_rows<1, false>(row + r, scale + r, n, total);
}

// The packed float32 row of a token: in the input itself, kept from the first pass, or packed now.
template <typename T>
STC_INLINE const float* fetch_row(const SaliencyParams& p, const SaliencyFrame& s, int64_t token,
                                  bool first_pass) {
  const T* x = row_pointer<T>(p.tokens, s.frame, token);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (s.rows == nullptr) return x;
  }
  if (s.keep_rows && !first_pass) return s.rows + token * p.row_pitch;
  const int64_t slot =
      s.keep_rows ? token : token / kSaliencyBlock * kSaliencyGroup + token % kSaliencyGroup;
  float* row = s.rows + slot * p.row_pitch;
  pack_row(p, x, row);
  return row;
}

// Pass 1, range: blocks of tokens. Norms, temporal dot products and the block's share of the
// anchor.
template <typename T>
void saliency_blocks_range(const SaliencyParams& p, const SaliencyFrame& s, int64_t begin,
                           int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    float* total = s.partial + block * p.row_pitch;
    const int64_t first = block * kSaliencyBlock;
    const int64_t last =
        first + kSaliencyBlock < p.tokens_per_frame ? first + kSaliencyBlock : p.tokens_per_frame;
    for (int64_t token = first; token < last; token += kSaliencyGroup) {
      const float* row[kSaliencyGroup];
      const int count =
          static_cast<int>(last - token < kSaliencyGroup ? last - token : kSaliencyGroup);
      for (int r = 0; r < count; ++r) {
        row[r] = fetch_row<T>(p, s, token + r, true);
        // Without a temporal anchor any readable row does; its dot product is not used.
        const float* temporal = p.temporal != nullptr ? p.temporal : row[r];
        const NormAndDot d = norm_and_dot(row[r], temporal, p.selected);
        const float norm = __builtin_sqrtf(d.norm2);
        const float inverse = 1.0f / (norm < 1e-12f ? 1e-12f : norm);
        s.inverse[token + r] = inverse;
        s.norm2[token + r] = (norm * inverse) * (norm * inverse);
        s.temporal_dot[token + r] = d.dot * inverse;
      }
      if (token == first) {
        add_group<true>(count, row, s.inverse + token, p.selected, total);
      } else {
        add_group<false>(count, row, s.inverse + token, p.selected, total);
      }
    }
  }
}

// Between the passes: the anchor is the sum of the blocks, in order, over the number of tokens.
inline void compute_anchor(const SaliencyParams& p, SaliencyFrame* s) {
  const int64_t blocks = (p.tokens_per_frame + kSaliencyBlock - 1) / kSaliencyBlock;
  const float share = 1.0f / static_cast<float>(p.tokens_per_frame);
  for (int64_t c = 0; c < p.selected; c += kLanes) {
    const int count = p.selected - c < kLanes ? static_cast<int>(p.selected - c) : kLanes;
    Vec total = {};
    for (int64_t block = 0; block < blocks; ++block) {
      const float* at = s->partial + block * p.row_pitch + c;
      total += count == kLanes ? load(at) : load_partial(at, 1, count);
    }
    // row_pitch leaves room for a whole vector.
    store(s->anchor + c, total * share);
  }
  s->anchor_norm2 = dot_row(s->anchor, s->anchor, p.selected);
}

// exp(-d/(2s)) for s in {1/8, 1/4, 1/2, 1, 2} are the powers 16, 8, 4, 2, 1 of exp(-d/4).
STC_INLINE float gaussian_sum(float distance2) {
  const float e1 = __builtin_expf(-0.25f * (distance2 < 0.0f ? 0.0f : distance2));
  const float e2 = e1 * e1, e4 = e2 * e2, e8 = e4 * e4;
  return e1 + e2 + e4 + e8 + e8 * e8;
}

STC_INLINE float token_score(const SaliencyParams& p, const SaliencyFrame& s, int64_t token,
                             float frame_dot) {
  const float norm2 = s.norm2[token], temporal_dot = s.temporal_dot[token];
  if (p.gaussian) {
    const float near_frame = gaussian_sum(norm2 + s.anchor_norm2 - 2.0f * frame_dot);
    if (p.temporal == nullptr) return -2.0f * near_frame;
    const float near_past = gaussian_sum(norm2 + p.temporal_norm2 - 2.0f * temporal_dot);
    return -(2.0f * p.alpha * near_past + 2.0f * (1.0f - p.alpha) * near_frame);
  }
  const float anchor_norm = __builtin_sqrtf(s.anchor_norm2);
  const float from_frame = 1.0f - frame_dot / (anchor_norm < 1e-12f ? 1e-12f : anchor_norm);
  if (p.temporal == nullptr) return from_frame;
  return p.alpha * (1.0f - temporal_dot) + (1.0f - p.alpha) * from_frame;
}

// Pass 2, range: blocks of tokens.
template <typename T>
void saliency_scores_range(const SaliencyParams& p, const SaliencyFrame& s, int64_t begin,
                           int64_t end) {
  int64_t last = end * kSaliencyBlock;
  if (last > p.tokens_per_frame) last = p.tokens_per_frame;
  for (int64_t token = begin * kSaliencyBlock; token < last; ++token) {
    const float* row = fetch_row<T>(p, s, token, false);
    const float frame_dot = dot_row(row, s.anchor, p.selected) * s.inverse[token];
    p.scores[s.frame * p.tokens_per_frame + token] = token_score(p, s, token, frame_dot);
  }
}

}  // namespace stc::STC_ISA
