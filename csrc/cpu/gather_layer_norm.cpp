// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/layer_norm.h"

namespace stc::STC_ISA {

void gather_layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  visit(p.dtype,
        [&](auto* type) { gather_layer_norm_range<ElementOf<decltype(type)>>(p, begin, end); });
}

}  // namespace stc::STC_ISA
