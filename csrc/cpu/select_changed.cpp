// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/select.h"

namespace stc::STC_ISA {

void select(const SelectParams& p, int64_t begin, int64_t end) { select_range(p, begin, end); }

}  // namespace stc::STC_ISA
