// SPDX-License-Identifier: Apache-2.0
// Chooses among the instruction sets that this library was compiled for. Built once, for the
// baseline, because it runs before anything is known about the processor.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "stc/kernel_table.h"

namespace stc {

namespace baseline {
extern const KernelTable kTable;
}
#if defined(STC_HAVE_X86_LEVELS)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
#endif

namespace {

const KernelTable* choose() {
  const char* wanted = std::getenv("STC_KERNELS_CPU_CAPABILITY");
  const auto allowed = [wanted](const KernelTable& table) {
    return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, table.name) == 0;
  };
#if defined(STC_HAVE_X86_LEVELS)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && allowed(avx512::kTable)) return &avx512::kTable;
  if (has_avx2 && allowed(avx2::kTable)) return &avx2::kTable;
#endif
  if (allowed(baseline::kTable)) return &baseline::kTable;
  throw std::runtime_error(std::string("STC_KERNELS_CPU_CAPABILITY must be one of ") +
                           compiled_capabilities() + " and run on this processor, got " + wanted);
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable* const table = choose();
  return *table;
}

const char* compiled_capabilities() {
#if defined(STC_HAVE_X86_LEVELS)
  return "baseline avx2 avx512";
#else
  return "baseline";
#endif
}

}  // namespace stc
