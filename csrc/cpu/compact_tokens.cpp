// SPDX-License-Identifier: Apache-2.0
#include "launchers.h"
#include "stc/rows.h"

namespace stc::STC_ISA {

void compact_rows(const CompactParams& p, int64_t begin, int64_t end) {
  p.element_size == 4 ? compact_rows_range<uint32_t>(p, begin, end)
                      : compact_rows_range<uint16_t>(p, begin, end);
}

}  // namespace stc::STC_ISA
