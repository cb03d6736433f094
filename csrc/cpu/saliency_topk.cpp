// SPDX-License-Identifier: Apache-2.0
#include "stc/saliency_topk.h"

#include "launchers.h"

namespace stc::STC_ISA {

void saliency_blocks(const SaliencyParams& p, const SaliencyFrame& s, int64_t begin, int64_t end) {
  visit(p.dtype,
        [&](auto* type) { saliency_blocks_range<ElementOf<decltype(type)>>(p, s, begin, end); });
}

void saliency_anchor(const SaliencyParams& p, SaliencyFrame* s) { compute_anchor(p, s); }

void saliency_scores(const SaliencyParams& p, const SaliencyFrame& s, int64_t begin, int64_t end) {
  visit(p.dtype,
        [&](auto* type) { saliency_scores_range<ElementOf<decltype(type)>>(p, s, begin, end); });
}

}  // namespace stc::STC_ISA
