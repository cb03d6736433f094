// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/column_mean.h"

namespace stc::STC_ISA {

int64_t column_mean_scratch(const ColumnMeanParams& p) { return column_mean_floats(p); }

void column_mean(const ColumnMeanParams& p, float* scratch, int64_t batch, int64_t head) {
  visit(p.dtype,
        [&](auto* type) { column_mean_head<ElementOf<decltype(type)>>(p, scratch, batch, head); });
}

}  // namespace stc::STC_ISA
