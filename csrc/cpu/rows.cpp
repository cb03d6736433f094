// SPDX-License-Identifier: Apache-2.0
#include "stc/rows.h"

#include "launchers.h"
#include "stc/layer_norm.h"

namespace stc::STC_ISA {

void gather_rows(const GatherParams& p, int64_t begin, int64_t end) {
  p.element_size == 4 ? gather_rows_range<uint32_t>(p, begin, end)
                      : gather_rows_range<uint16_t>(p, begin, end);
}

void scatter_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  p.element_size == 4 ? scatter_rows_range<uint32_t>(p, begin, end)
                      : scatter_rows_range<uint16_t>(p, begin, end);
}

void gather_layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  visit(p.dtype,
        [&](auto* type) { gather_layer_norm_range<ElementOf<decltype(type)>>(p, begin, end); });
}

void scatter_residual(const ResidualParams& p, int64_t begin, int64_t end) {
  visit(p.dtype,
        [&](auto* type) { scatter_residual_range<ElementOf<decltype(type)>>(p, begin, end); });
}

}  // namespace stc::STC_ISA
