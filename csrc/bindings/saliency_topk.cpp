// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "common.h"

namespace stc::bindings {

namespace {

// The selected channels as a list and as bits; both empty when all take part.
struct ChannelSet {
  std::vector<int32_t> index;
  std::vector<uint16_t> lanes;
};

ChannelSet channel_set(const Tensor& mask, int64_t channels) {
  const char* op = "saliency_topk";
  check_dim(op, "channels", mask, 1);
  check_size(op, "channels", mask, 0, channels);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "`", op,
                  "`: channels must be a bool mask");
  // Bytes, because a C++ bool may be nothing but 0 and 1.
  const uint8_t* on = static_cast<const uint8_t*>(mask.const_data_ptr());
  const int64_t stride = mask.stride(0);
  ChannelSet set;
  set.index.reserve(static_cast<size_t>(channels));
  set.lanes.resize(static_cast<size_t>((channels + 15) / 16));
  for (int64_t c = 0; c < channels; ++c) {
    if (on[c * stride] == 0) continue;
    set.index.push_back(static_cast<int32_t>(c));
    set.lanes[static_cast<size_t>(c / 16)] |= static_cast<uint16_t>(1u << (c % 16));
  }
  return set;
}

// The temporal anchor: memory restricted to the selected channels, divided by its norm.
std::vector<float> temporal_anchor(const Tensor& memory, const SaliencyParams& p) {
  const std::vector<float> all = to_floats("saliency_topk", "memory", memory, p.channels);
  // One element more, so that data() is not null where no channel is selected.
  std::vector<float> anchor(static_cast<size_t>(p.selected) + 1, 0.0f);
  double norm2 = 0.0;
  for (int64_t i = 0; i < p.selected; ++i) {
    const int64_t c = p.channel_index != nullptr ? p.channel_index[i] : i;
    const float value = all[static_cast<size_t>(c)];
    anchor[static_cast<size_t>(i)] = value;
    norm2 += static_cast<double>(value) * value;
  }
  const float norm = static_cast<float>(std::sqrt(norm2));
  for (float& value : anchor) value /= norm < 1e-12f ? 1e-12f : norm;
  return anchor;
}

float squared_norm(const std::vector<float>& x) {
  double total = 0.0;
  for (const float value : x) total += static_cast<double>(value) * value;
  return static_cast<float>(total);
}

// How much scratch a frame needs and where its parts lie.
struct ScratchPlan {
  int64_t blocks;
  int64_t rows;  // packed rows; 0 where the input is read in place
  bool keep_rows;
  int64_t floats;

  ScratchPlan(const SaliencyParams& p, bool in_place) {
    const int64_t n = p.tokens_per_frame;
    blocks = (n + kSaliencyBlock - 1) / kSaliencyBlock;
    keep_rows = (n + blocks + 1) * p.row_pitch * 4 <= kScratchBytes;
    rows = in_place ? 0 : keep_rows ? n : blocks * kSaliencyGroup;
    floats = (rows + blocks + 1) * p.row_pitch + 3 * n;
  }

  SaliencyFrame frame(const SaliencyParams& p, float* at, int64_t index) const {
    SaliencyFrame s = {};
    s.frame = index;
    s.keep_rows = keep_rows;
    s.rows = rows > 0 ? at : nullptr;
    s.partial = at + rows * p.row_pitch;
    s.anchor = s.partial + blocks * p.row_pitch;
    s.inverse = s.anchor + p.row_pitch;
    s.temporal_dot = s.inverse + p.tokens_per_frame;
    s.norm2 = s.temporal_dot + p.tokens_per_frame;
    return s;
  }
};

// The arithmetic of a frame is the same either way, so the result does not depend on the choice:
// with enough frames each thread takes whole ones, otherwise the threads share the blocks of one.
void score_frames(const SaliencyParams& p, int64_t frames, bool in_place) {
  const KernelTable& k = kernels();
  const ScratchPlan plan(p, in_place);
  const int64_t threads = torch::stable::get_num_threads();
  const bool whole = threads == 1 || frames % threads == 0 || frames >= 4 * threads;
  const int64_t workers = whole ? std::min(frames, threads) : 1;
  const auto score = [&](float* scratch, int64_t frame, const auto& each_block) {
    SaliencyFrame s = plan.frame(p, scratch, frame);
    each_block([&](int64_t b, int64_t e) { k.saliency_blocks(p, s, b, e); });
    k.saliency_anchor(p, &s);
    each_block([&](int64_t b, int64_t e) { k.saliency_scores(p, s, b, e); });
  };
  if (!whole) {
    const int64_t cost = kSaliencyBlock * p.channels;
    const auto shared = [&](const auto& f) { parallel(plan.blocks, cost, f); };
    float* scratch = scratch_floats(plan.floats);
    for (int64_t frame = 0; frame < frames; ++frame) score(scratch, frame, shared);
    return;
  }
  const auto alone = [&](const auto& f) { f(int64_t{0}, plan.blocks); };
  const int64_t cost = frames / workers * p.tokens_per_frame * p.channels;
  parallel(workers, cost, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_floats(plan.floats);
    for (int64_t worker = begin; worker < end; ++worker) {
      const int64_t last = frames * (worker + 1) / workers;
      for (int64_t f = frames * worker / workers; f < last; ++f) score(scratch, f, alone);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> saliency_topk(const Tensor& tokens, std::optional<Tensor> memory,
                                         int64_t k, std::string method, double alpha,
                                         std::optional<Tensor> channels) {
  const char* op = "saliency_topk";
  check_dim(op, "tokens", tokens, 3);
  const int64_t frames = tokens.size(0), n = tokens.size(1), d = tokens.size(2);
  check_tokens(op, n);
  check_range(op, "k", k, 0, n);
  STD_TORCH_CHECK(method == "gaussian" || method == "dual_anchor", "`", op,
                  "`: method must be gaussian or dual_anchor, got ", method);
  SaliencyParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = view_of(tokens);
  p.tokens_per_frame = n;
  p.channels = p.selected = d;
  ChannelSet set;
  if (channels.has_value()) {
    set = channel_set(*channels, d);
    p.selected = static_cast<int64_t>(set.index.size());
    if (p.selected < d) {
      p.channel_index = set.index.data();
      p.lane_masks = set.lanes.data();
    }
  }
  p.row_pitch = (p.selected + 15) / 16 * 16 + 16;
  std::vector<float> anchor;
  if (memory.has_value()) {
    anchor = temporal_anchor(*memory, p);
    p.temporal = anchor.data();
    p.temporal_norm2 = squared_norm(anchor);
  }
  p.gaussian = method == "gaussian";
  p.alpha = static_cast<float>(alpha);
  const Tensor scores = empty_like_device(tokens, {frames, n}, ScalarType::Float);
  p.scores = static_cast<float*>(scores.mutable_data_ptr());
  const bool in_place =
      p.dtype == DType::kFloat32 && p.channel_index == nullptr && p.tokens.channel_stride == 1;
  if (frames * n > 0) score_frames(p, frames, in_place);
  Selection how;
  how.capacity = k;
  how.highest = true;
  return {select_indices(scores, how), scores};
}

}  // namespace stc::bindings
