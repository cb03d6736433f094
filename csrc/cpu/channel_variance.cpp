// SPDX-License-Identifier: Apache-2.0
#include "stc/channel_variance.h"

#include "launchers.h"

namespace stc::STC_ISA {

void variance_blocks(const VarianceParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.tokens.channel_stride == 1 ? variance_blocks_range<true, T>(p, begin, end)
                                 : variance_blocks_range<false, T>(p, begin, end);
  });
}

void variance_merge(const VarianceParams& p, int64_t begin, int64_t end) {
  variance_merge_range(p, begin, end);
}

}  // namespace stc::STC_ISA
