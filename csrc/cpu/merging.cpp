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

void match_tiles(const MatchParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.metric.channel_stride == 1 ? match_tiles_range<true, T>(p, begin, end)
                                 : match_tiles_range<false, T>(p, begin, end);
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
