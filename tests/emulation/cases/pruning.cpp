// SPDX-License-Identifier: Apache-2.0
// channel_variance, saliency_topk, spatial_redundancy, compact_tokens.
#include "bound.h"
#include "launchers.h"
#include "ops.h"

using namespace stc;

void test_channel_variance(Case& c, int size) {
  Rng& r = c.rng;
  const Dt dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  const int64_t B = r.between(1, 3),
                N = size == 0   ? r.pick<int64_t>({1, 2, 5, 31, 33, 64})
                    : size == 1 ? r.pick<int64_t>({196, 729})
                                : r.pick<int64_t>({4096, 4100, 5000}),
                C = size == 0   ? r.pick<int64_t>({1, 7, 8, 33, 64, 256, 264})
                    : size == 1 ? r.pick<int64_t>({100, 520})
                                : r.pick<int64_t>({3, 8});
  c.what =
      "B" + std::to_string(B) + " N" + std::to_string(N) + " C" + std::to_string(C) + name_of(dt);
  const Tensor x = laid_out(r, "tokens", dt, {B, N, C});
  const double shift = dt == Dt::kF32 ? r.pick({0.0, 100.0}) : 0.0;
  fill(r, x, 1.0, shift);
  VarianceParams p = {};
  p.dtype = stc_of(dt);
  p.tokens = x.view();
  p.tokens_per_frame = N, p.rows = B * N, p.channels = C;
  p.block_rows = std::max<int64_t>(32, (p.rows + 127) / 128);
  p.blocks = (p.rows + p.block_rows - 1) / p.block_rows;
  Tensor moments = output("_moments", Dt::kF32, {2, p.blocks, C}),
         out = output("variance", Dt::kF32, {C});
  p.block_mean = moments.as<float>();
  p.block_m2 = p.block_mean + p.blocks * C;
  p.variance = out.as<float>();
  c.outputs = {&moments, &out};
  c.run([&](cudaStream_t st) { return stc::cuda::channel_variance(p, st); });
  check_bound(c, "channel_variance", bind::channel_variance, {&out}, {}, x);
  for (int64_t i = 0; i < C; ++i) {
    double mean = 0, var = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t n = 0; n < N; ++n) mean += x({b, n, i});
    mean /= static_cast<double>(B * N);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t n = 0; n < N; ++n) var += (x({b, n, i}) - mean) * (x({b, n, i}) - mean);
    c.near("variance", out({i}), var / static_cast<double>(B * N), 1e-6, 2e-5);
  }
}

void test_saliency_topk(Case& c, int size) {
  Rng& r = c.rng;
  const Dt dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  const int64_t F = size == 2 ? r.pick<int64_t>({1, 130}) : r.between(1, 3),
                N = size == 0   ? r.pick<int64_t>({1, 2, 9, 33, 64, 70})
                    : size == 1 ? r.pick<int64_t>({196, 300, 513})
                    : F > 1     ? r.pick<int64_t>({1, 3})
                                : r.pick<int64_t>({2049, 4100}),
                C = size == 0   ? r.pick<int64_t>({1, 5, 8, 31, 64, 72, 200})
                    : size == 1 ? r.pick<int64_t>({24, 136, 520})
                                : r.pick<int64_t>({8, 70});
  const bool gaussian = r.chance(50), masked = r.chance(40), remembers = r.chance(60);
  const int64_t k = r.pick<int64_t>({0, 1, r.below(N + 1), N});
  c.what = "F" + std::to_string(F) + " N" + std::to_string(N) + " C" + std::to_string(C) + " k" +
           std::to_string(k) + name_of(dt) + (gaussian ? " gaussian" : " dual") +
           (masked ? " masked" : "") + (remembers ? " memory" : "");
  const Tensor x = laid_out(r, "tokens", dt, {F, N, C});
  fill(r, x);
  if (r.chance(20))
    for (int64_t i = 0; i < C; ++i) x.put({0, N / 2, i}, 0.0);
  if (r.chance(30) && N > 2)
    for (int64_t i = 0; i < C; ++i) x.put({0, N - 1, i}, x({0, 0, i}));
  Tensor memory, mask;
  if (remembers) {
    const Dt md = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
    memory = r.chance(60) ? make("memory", md, {C}, emu::Kind::kInput)
                          : make("memory", md, {C}, emu::Kind::kInput, {2}, 1);
    fill(r, memory);
  }
  if (masked) {
    mask = make("channels", Dt::kU8, {C}, emu::Kind::kInput, {r.between(1, 2)});
    const int share = static_cast<int>(r.pick<int64_t>({0, 30, 70, 100}));
    for (int64_t i = 0; i < C; ++i) mask.put({i}, r.chance(share) ? 1 : 0);
    for (int64_t i = 0; i < C; ++i)
      if (mask({i}) == 0 && r.chance(10)) x.put({0, 0, i}, NAN);  // must not matter
  }
  Tensor scores = output("scores", Dt::kF32, {F, N}), indices = output("indices", Dt::kI32, {F, k});
  stc::cuda::SaliencyTopkParams p = {};
  p.dtype = stc_of(dt);
  p.tokens = x.view();
  p.frames = F, p.tokens_per_frame = N, p.channels = C, p.k = k;
  p.memory = memory.channels();
  if (masked) p.mask = mask.as<uint8_t>(), p.mask_stride = mask.stride[0];
  p.gaussian = gaussian;
  p.alpha = 0.3f;
  p.scores = scores.as<float>();
  p.indices = indices.as<int32_t>();
  p.slices = stc::cuda::saliency_slices(p);
  const int64_t slices = F * p.slices, rows = F * N;
  Tensor scratch = output("_scratch", Dt::kF32, {F + rows + 1 + slices + slices * 2 * N});
  p.arrivals = scratch.as<uint32_t>();
  p.inverse_norms = scratch.as<float>() + F;
  p.anchor_squares = p.inverse_norms + rows + 1;
  p.shares = p.anchor_squares + slices;
  c.outputs = {&scratch, &scores, &indices};
  c.run([&](cudaStream_t st) { return stc::cuda::saliency_topk(p, st); });
  check_bound(c, "saliency_topk", bind::saliency_topk, {&indices, &scores}, {}, x, memory, k,
              gaussian ? "gaussian" : "dual_anchor", 0.3f, mask);
  const auto used = [&](int64_t i) { return !masked || mask({i}) != 0; };
  const auto unit = [&](std::vector<double> v) {
    double s = 0;
    for (int64_t i = 0; i < C; ++i)
      v[static_cast<size_t>(i)] = used(i) ? v[static_cast<size_t>(i)] : 0.0,
      s += v[static_cast<size_t>(i)] * v[static_cast<size_t>(i)];
    s = std::max(std::sqrt(s), 1e-12);
    for (double& e : v) e /= s;
    return v;
  };
  std::vector<double> past(static_cast<size_t>(C), 0.0);
  if (remembers) {
    for (int64_t i = 0; i < C; ++i) past[static_cast<size_t>(i)] = memory({i});
    past = unit(past);
  }
  for (int64_t f = 0; f < F; ++f) {
    std::vector<std::vector<double>> z;
    std::vector<double> anchor(static_cast<size_t>(C), 0.0);
    for (int64_t n = 0; n < N; ++n) {
      std::vector<double> v;
      for (int64_t i = 0; i < C; ++i) v.push_back(x({f, n, i}));
      z.push_back(unit(v));
      for (int64_t i = 0; i < C; ++i)
        anchor[static_cast<size_t>(i)] += z.back()[static_cast<size_t>(i)] / static_cast<double>(N);
    }
    const auto score = [&](const std::vector<double>& v, std::vector<double> a) {
      double s = 0;
      if (gaussian) {
        for (int64_t i = 0; i < C; ++i)
          s += (v[static_cast<size_t>(i)] - a[static_cast<size_t>(i)]) *
               (v[static_cast<size_t>(i)] - a[static_cast<size_t>(i)]);
        double g = 0;
        for (double w : {0.125, 0.25, 0.5, 1.0, 2.0}) g += std::exp(-s / (2 * w));
        return -2 * g;
      }
      a = unit(a);
      for (int64_t i = 0; i < C; ++i) s += v[static_cast<size_t>(i)] * a[static_cast<size_t>(i)];
      return 1 - s;
    };
    std::vector<float> got;
    for (int64_t n = 0; n < N; ++n) {
      double want = score(z[static_cast<size_t>(n)], anchor);
      if (remembers) want = 0.3 * score(z[static_cast<size_t>(n)], past) + 0.7 * want;
      c.near("score", scores({f, n}), want, 2e-5, 1e-5);
      got.push_back(static_cast<float>(scores({f, n})));
    }
    auto order = selection_order(got, 0, true);
    order.resize(static_cast<size_t>(k));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < k; ++i)
      c.near("indices", indices({f, i}), static_cast<double>(order[static_cast<size_t>(i)]), 0, 0);
  }
}

void test_spatial_redundancy(Case& c, int size) {
  Rng& r = c.rng;
  const bool tiled = size == 2 && (c.seed - 1) / 3 % 2 == 0;  // large and aligned, of each type
  const Dt dt = c.float_type();
  const int64_t F = size == 2 ? 1 : r.between(1, 3),
                H = size == 0   ? r.between(1, 7)
                    : size == 1 ? r.between(12, 20)
                                : r.pick<int64_t>({64, 65}),
                W = size == 0   ? r.between(1, 9)
                    : size == 1 ? r.between(12, 20)
                                : r.pick<int64_t>({64, 66, 70}),
                C = size == 0   ? r.pick<int64_t>({1, 3, 8, 40, 129, 136})
                    : size == 1 ? r.pick<int64_t>({64, 1032})
                                : (tiled ? 8 : r.pick<int64_t>({8, 5}));
  c.what = "F" + std::to_string(F) + " H" + std::to_string(H) + " W" + std::to_string(W) + " C" +
           std::to_string(C) + name_of(dt);
  if (size == 2) c.schedules = std::min(c.schedules, 2);
  const int layout = tiled ? r.pick({0, 1, 4}) : r.pick({0, 0, 1, 2, 3, 4, 5, 6, 8, 9, 9});
  const Tensor x = laid_out(r, "tokens", dt, {F, H, W, C}, emu::Kind::kInput, layout);
  fill(r, x);
  if (r.chance(30)) x.put({0, H / 2, W / 2, 0}, NAN);
  Tensor alive;
  if (r.chance(60)) {
    alive = laid_out(r, "alive", Dt::kU8, {F, H, W});
    for (int64_t i = 0; i < alive.numel(); ++i) alive.set(alive.nth(i), r.chance(70));
  }
  Tensor out = output("redundancy", Dt::kF32, {F, H, W}),
         scratch = output("_scratch", Dt::kF32, {3, F * H * W});
  RedundancyParams p = {};
  p.dtype = stc_of(dt);
  p.tokens = {x.data(), x.stride[0], x.stride[1], x.stride[2], x.stride[3]};
  if (alive) p.alive = {alive.as<bool>(), alive.stride[0], alive.stride[1], alive.stride[2]};
  p.frames = F, p.rows = H, p.columns = W, p.channels = C;
  p.redundancy = out.as<float>();
  p.norm = scratch.as<float>();
  p.dot_right = p.norm + F * H * W;
  p.dot_below = p.dot_right + F * H * W;
  c.outputs = {&scratch, &out};
  c.run([&](cudaStream_t st) { return stc::cuda::spatial_redundancy(p, st); });
  check_bound(c, "spatial_redundancy", bind::spatial_redundancy, {&out}, {}, x, alive);
  const auto cosine = [&](int64_t f, int64_t h, int64_t w, int64_t h2, int64_t w2) {
    double xy = 0, xx = 0, yy = 0;
    for (int64_t i = 0; i < C; ++i) {
      const double a = x({f, h, w, i}), b = x({f, h2, w2, i});
      xy += a * b, xx += a * a, yy += b * b;
    }
    xx = std::sqrt(xx), yy = std::sqrt(yy);
    return xy / ((xx < 1e-8 ? 1e-8 : xx) * (yy < 1e-8 ? 1e-8 : yy));
  };
  for (int64_t f = 0; f < F; ++f)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t w = 0; w < W; ++w) {
        double best = -INFINITY;
        const int64_t at[4][2] = {{h, w + 1}, {h, w - 1}, {h + 1, w}, {h - 1, w}};
        for (const auto& [h2, w2] : at) {
          if (h2 < 0 || h2 >= H || w2 < 0 || w2 >= W) continue;
          if (alive && alive({f, h2, w2}) == 0) continue;
          const double s = cosine(f, h, w, h2, w2);
          if (s > best) best = s;
        }
        c.near("redundancy", out({f, h, w}), best, 4e-6, 4e-6);
      }
}

void test_compact_tokens(Case& c, int size) {
  Rng& r = c.rng;
  const Dt dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  const int64_t F = r.between(1, 4),
                N = size == 0   ? r.pick<int64_t>({0, 1, 5, 33, 100})
                    : size == 1 ? r.pick<int64_t>({255, 729, 1023, 1024, 1025})
                                : r.pick<int64_t>({3000, 5000}),
                C = size == 2 ? r.pick<int64_t>({1, 8}) : r.pick<int64_t>({0, 1, 7, 8, 64, 129});
  const int64_t capacity = r.pick<int64_t>({0, r.below(F * N + 1), F * N, F * N / 2});
  c.what = "F" + std::to_string(F) + " N" + std::to_string(N) + " C" + std::to_string(C) +
           " capacity " + std::to_string(capacity) + name_of(dt);
  const Tensor x = laid_out(r, "tokens", dt, {F, N, C}),
               keep = laid_out(r, "keep", Dt::kU8, {F, N}, emu::Kind::kInput,
                               static_cast<int>(r.between(0, 6)));
  fill(r, x);
  const int share = static_cast<int>(r.pick<int64_t>({0, 10, 50, 100}));
  for (int64_t i = 0; i < keep.numel(); ++i) keep.set(keep.nth(i), r.chance(share));
  const int64_t pieces = F * pieces_per_frame(N);
  Tensor packed = output("packed", dt, {capacity, C}),
         indices = output("indices", Dt::kI32, {capacity}),
         counts = output("counts", Dt::kI32, {F}), scratch = output("_scratch", Dt::kI32, {pieces});
  CompactionParams p = {x.view(),
                        keep.as<bool>(),
                        keep.stride[0],
                        keep.stride[1],
                        F,
                        N,
                        C,
                        static_cast<int64_t>(size_of(dt)),
                        capacity,
                        scratch.as<int32_t>(),
                        packed.data(),
                        indices.as<int32_t>(),
                        counts.as<int32_t>()};
  c.outputs = {&scratch, &packed, &indices, &counts};
  c.run([&](cudaStream_t st) { return stc::cuda::compact_tokens(p, st); });
  check_bound(c, "compact_tokens", bind::compact_tokens, {&packed, &indices, &counts}, {}, x, keep,
              capacity);
  int64_t place = 0;
  for (int64_t f = 0; f < F; ++f) {
    int64_t n_kept = 0;
    for (int64_t n = 0; n < N; ++n) {
      if (keep({f, n}) == 0) continue;
      ++n_kept;
      if (place < capacity) {
        c.near("indices", indices({place}), static_cast<double>(f * N + n), 0, 0);
        for (int64_t i = 0; i < C; ++i) c.near("packed", packed({place, i}), x({f, n, i}), 0, 0);
      }
      ++place;
    }
    c.near("counts", counts({f}), static_cast<double>(n_kept), 0, 0);
  }
  for (; place < capacity; ++place) {
    c.near("indices", indices({place}), -1, 0, 0);
    for (int64_t i = 0; i < C; ++i) c.near("packed", packed({place, i}), 0, 0, 0);
  }
}
