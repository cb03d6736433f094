// SPDX-License-Identifier: Apache-2.0
#include "stc/merging.h"

#include "launchers.h"

namespace stc::STC_ISA {

void match_norms(const MatchParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.metric.channel_stride == 1 ? match_norms_range<true, T>(p, begin, end)
                                 : match_norms_range<false, T>(p, begin, end);
  });
}

int64_t match_scratch(const MatchParams& p) { return match_floats(p); }

void match(const MatchParams& p, float* scratch, int64_t batch, int64_t first) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.metric.channel_stride == 1 ? match_block<true, T>(p, scratch, batch, first)
                                 : match_block<false, T>(p, scratch, batch, first);
  });
}

void merge_rows(const MergeParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.tokens.channel_stride == 1 ? merge_rows_range<true, T>(p, begin, end)
                                 : merge_rows_range<false, T>(p, begin, end);
  });
}

}  // namespace stc::STC_ISA
