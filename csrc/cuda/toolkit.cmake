# SPDX-License-Identifier: Apache-2.0
# The CUDA compiler, the architectures, and the kernels as objects of the target stc_cuda.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "nvcc was not found: install the CUDA toolkit or set CUDACXX to its nvcc, "
                      "or configure with -DSTC_WITH_CUDA=OFF")
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # each is named below
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# "80,90+PTX": machine code for both and, for later GPUs, PTX of the last.
string(REPLACE "," ";" archs "${STC_CUDA_ARCHS}")
set(gencode)
foreach(arch IN LISTS archs)
  if(NOT arch MATCHES "^([0-9]+[af]?)(\\+PTX)?$")
    message(FATAL_ERROR "STC_CUDA_ARCHS must be a list such as 80,90,120+PTX, got ${STC_CUDA_ARCHS}")
  endif()
  set(number "${CMAKE_MATCH_1}")
  list(APPEND gencode "-gencode=arch=compute_${number},code=sm_${number}")
  if(CMAKE_MATCH_2)
    list(APPEND gencode "-gencode=arch=compute_${number},code=compute_${number}")
  endif()
endforeach()

add_library(stc_cuda OBJECT
  csrc/cuda/attention_column_mean.cu csrc/cuda/channel_variance.cu csrc/cuda/compact_tokens.cu
  csrc/cuda/merging.cu csrc/cuda/patches.cu csrc/cuda/rows.cu csrc/cuda/saliency_topk.cu csrc/cuda/select_changed.cu
  csrc/cuda/sparse_query_attention.cu csrc/cuda/spatial_redundancy.cu csrc/cuda/token_cosine.cu
  csrc/cuda/transformer_block.cu)
set_target_properties(stc_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF)
target_include_directories(stc_cuda PRIVATE csrc/include)
target_compile_definitions(stc_cuda PRIVATE STC_ISA=cuda)
target_compile_options(stc_cuda PRIVATE
  ${gencode} -Xcompiler=-fvisibility=hidden -Xcompiler=-fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=
  $<$<BOOL:${STC_WERROR}>:-Werror=all-warnings>)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
set(STC_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
