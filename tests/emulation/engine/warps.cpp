// SPDX-License-Identifier: Apache-2.0
// Operations of a warp: they wait for all lanes that the mask names.
#include <algorithm>

#include "engine.h"

namespace emu {

namespace {

bool is_matrix(WarpOp op) { return op >= WarpOp::kLdmatrix; }

void compute_warp(Fiber* f, Fiber* lanes, int count) {
  const unsigned mask = f->mask;
  const auto part = [&](int l) {
    return l >= 0 && l < count && (mask >> l & 1u) && lanes[l].state != State::kDone;
  };
  if (is_matrix(f->op)) {
    compute_matrix(f->op, lanes);
    return;
  }
  uint64_t reduced = 0;
  bool begun = false;
  for (int l = 0; l < count; ++l) {
    if (!part(l)) continue;
    const uint64_t v = lanes[l].in;
    switch (f->op) {
      case WarpOp::kBallot:
        reduced |= (v != 0 ? 1ull : 0ull) << l;
        break;
      case WarpOp::kAny:
        reduced |= v != 0;
        break;
      case WarpOp::kAll:
        reduced = (begun ? reduced : 1) & (v != 0);
        break;
      case WarpOp::kReduceAdd:
        reduced = static_cast<uint32_t>(reduced + v);
        break;
      default:
        break;
    }
    begun = true;
  }
  for (int l = 0; l < count; ++l) {
    if (!part(l)) continue;
    Fiber& g = lanes[l];
    if (g.param != f->param && f->op != WarpOp::kShfl)
      report("lanes of a warp with different parameters", f->site, "");
    const int w = g.width, base = l & ~(w - 1);
    int from = l;
    switch (f->op) {
      case WarpOp::kShfl:
        from = base | (g.param & (w - 1));
        break;
      case WarpOp::kShflUp:
        from = l - g.param < base ? l : l - g.param;
        break;
      case WarpOp::kShflDown:
        from = l + g.param > base + w - 1 ? l : l + g.param;
        break;
      case WarpOp::kShflXor:
        from = (l ^ g.param) > base + w - 1 ? l : l ^ g.param;
        break;
      case WarpOp::kMatchAny: {
        uint64_t same = 0;
        for (int o = 0; o < count; ++o) {
          if (part(o) && lanes[o].in == g.in) same |= 1ull << o;
        }
        g.out = same;
        continue;
      }
      case WarpOp::kSyncWarp:
        continue;
      default:
        g.out = reduced;
        continue;
    }
    if (!part(from)) {
      report("shuffle reads a lane that does not take part", f->site, std::to_string(from));
      g.out = 0x7fc0dead7fc0deadull;
    } else {
      g.out = lanes[from].in;
    }
  }
}

}  // namespace

// Whether all lanes that f's mask names have arrived; if so, gives them their results and (but for
// f) makes them ready.
bool complete_warp(Fiber* f) {
  Block* b = f->block;
  const int first = f->tid / 32 * 32;
  const int count = std::min(32, b->threads - first);
  Fiber* lanes = &b->worker->fibers[first];
  bool all = true;
  for (int l = 0; l < 32; ++l) {
    if (!(f->mask >> l & 1u)) continue;
    if (l >= count) {
      report("mask names a lane that the block does not have", f->site, std::to_string(l));
      continue;
    }
    const Fiber& g = lanes[l];
    if (g.state == State::kDone) {
      report("mask names a lane that has ended", f->site, "lane " + std::to_string(l));
      continue;
    }
    if (g.state == State::kAtWarp && g.op == f->op && g.mask == f->mask) {
      if (g.site != f->site)
        report("note: lanes of a warp at different places of the code", g.site, "");
      continue;
    }
    if (g.state == State::kAtWarp) {
      report("lanes of a warp at different operations or with different masks", f->site,
             "lane " + std::to_string(l));
    } else if (g.state == State::kAtBarrier) {
      report("mask names a lane that waits at a barrier", f->site, "lane " + std::to_string(l));
    }
    all = false;
  }
  if (!all) return false;
  compute_warp(f, lanes, count);
  for (int l = 0; l < count; ++l) {
    Fiber* g = &lanes[l];
    if (g != f && g->state == State::kAtWarp && (f->mask >> l & 1u)) ready(g);
  }
  return true;
}

uint64_t warp_op(WarpOp op, unsigned mask, uint64_t value, int param, int width, const void* site) {
  Fiber* f = cur;
  ++stats.warp_ops;
  f->op = op;
  f->mask = mask;
  f->in = value;
  f->param = param;
  f->width = width;
  f->site = site;
  if (!(mask >> (f->tid % 32) & 1u)) report("mask does not name its own lane", site, "");
  f->state = State::kAtWarp;
  if (complete_warp(f)) {
    f->state = State::kRunning;
    maybe_switch(4);
  } else {
    leave(f);
  }
  return f->out;
}

}  // namespace emu
