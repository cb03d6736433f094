// SPDX-License-Identifier: Apache-2.0
#include "stc/spatial_redundancy.h"

#include "launchers.h"

namespace stc::STC_ISA {

void neighbour_dots(const NeighbourParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.tokens.channel_stride == 1 ? neighbour_dots_range<true, T>(p, begin, end)
                                 : neighbour_dots_range<false, T>(p, begin, end);
  });
}

void neighbour_maximum(const NeighbourParams& p, int64_t begin, int64_t end) {
  neighbour_maximum_range(p, begin, end);
}

}  // namespace stc::STC_ISA
