// SPDX-License-Identifier: Apache-2.0
#include "stc/attention_column_mean.h"

#include "launchers.h"

namespace stc::STC_ISA {

int64_t column_mean_scratch(const ColumnMeanParams& p) { return column_mean_floats(p); }

void column_mean(const ColumnMeanParams& p, float* scratch, int64_t batch, int64_t head) {
  visit(p.dtype, [&](auto* type) {
    using T = ElementOf<decltype(type)>;
    p.query.channel_stride == 1 && p.key.channel_stride == 1
        ? column_mean_head<true, T>(p, scratch, batch, head)
        : column_mean_head<false, T>(p, scratch, batch, head);
  });
}

}  // namespace stc::STC_ISA
