// SPDX-License-Identifier: Apache-2.0
// One function per kernel and instruction set; the .cpp files beside this one define them.
#pragma once

#include "stc/kernel_table.h"

#ifndef STC_ISA
#define STC_ISA baseline
#endif

namespace stc::STC_ISA {

#define STC_DECLARE(result, name, parameters) result name parameters;
STC_CPU_KERNELS(STC_DECLARE)
#undef STC_DECLARE

}  // namespace stc::STC_ISA
