// SPDX-License-Identifier: Apache-2.0
// The Python module. Importing it registers the ops (register.cpp); it offers facts about the
// build.
#include <pybind11/pybind11.h>

#include "build_config.h"
#include "stc/kernel_table.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = STC_VERSION;
  info["compiler"] = STC_COMPILER;
  info["torch_built_against"] = STC_TORCH_VERSION;
  info["torch_target"] = STC_TORCH_TARGET;
  info["cpu_capabilities"] = py::str(stc::compiled_capabilities()).attr("split")();
  info["cpu_capability"] = stc::kernels().name;
#if defined(STC_WITH_CUDA)
  info["cuda_archs"] = py::str(STC_CUDA_ARCHS).attr("split")(",");
  info["cuda_version"] = STC_CUDA_VERSION;
#else
  info["cuda_archs"] = py::none();
  info["cuda_version"] = py::none();
#endif
  info["build_mode"] = STC_BUILD_MODE;
  info["build_reason"] = STC_BUILD_REASON;
  info["namespace"] = STC_NAMESPACE;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  stc::kernels();  // chosen here, where a wrong choice becomes an ImportError with its sentence
  m.doc() = "Native operators of stc_kernels.";
  m.def("build_info", &build_info, "Facts about this build, as a dict.");
}
