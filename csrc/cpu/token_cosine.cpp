// SPDX-License-Identifier: Apache-2.0
#include "stc/token_cosine.h"

#include "launchers.h"

namespace stc::STC_ISA {

void token_cosine(const CosineParams& p, int64_t begin, int64_t end) {
  const bool unit = p.current.channel_stride == 1 && p.reference.channel_stride == 1;
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    unit ? token_cosine_range<true, T>(p, begin, end) : token_cosine_range<false, T>(p, begin, end);
  });
}

}  // namespace stc::STC_ISA
