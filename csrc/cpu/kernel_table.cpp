// SPDX-License-Identifier: Apache-2.0
#include "stc/kernel_table.h"

#include "launchers.h"

namespace stc::STC_ISA {

#define STC_STRING_(x) #x
#define STC_STRING(x) STC_STRING_(x)

extern const KernelTable kTable;
const KernelTable kTable = {STC_STRING(STC_ISA),
#define STC_ENTRY(result, name, parameters) name,
                            STC_CPU_KERNELS(STC_ENTRY)
#undef STC_ENTRY
};

}  // namespace stc::STC_ISA
