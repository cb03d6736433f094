// SPDX-License-Identifier: Apache-2.0
#include "common.h"

#include <dlfcn.h>

namespace stc::bindings::cuda {

namespace {

int32_t index_of(const char* op, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda(), "`", op,
                  "`: the CUDA kernel was given a tensor that is not on a GPU");
  return t.get_device_index();
}

// Only libtorch_cuda exports the current stream, and a library that is linked to it does not load
// where torch has no CUDA. torch opens it privately, so it has to be asked for by name.
cudaStream_t current_stream(const char* op, int32_t index) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(getter != nullptr, "`", op, "`: this build of torch has no CUDA support");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(index, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

OnDevice::OnDevice(const char* op, const Tensor& first)
    : op_(op), index_(index_of(op, first)), guard_(index_), stream_(current_stream(op, index_)) {}

void OnDevice::check(const char* name, const Tensor& t) const {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == index_, "`", op_, "`: ", name,
                  " must be on the device of the first argument");
}

ChannelVector OnDevice::channels(const char* name, const std::optional<Tensor>& t,
                                 int64_t channels) const {
  if (!t.has_value()) return {};
  check(name, *t);
  check_dim(op_, name, *t, 1);
  check_size(op_, name, *t, 0, channels);
  return {dtype_of(op_, name, *t), t->const_data_ptr(), t->stride(0)};
}

Tensor OnDevice::indices(const Tensor& t, int64_t batch) const {
  check("indices", t);
  check_dim(op_, "indices", t, 2);
  check_size(op_, "indices", t, 0, batch);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int, "`", op_, "`: indices must be int32");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

void OnDevice::launched(cudaError_t status) const {
  // Also what an earlier launch left behind, which would otherwise be blamed on a later one.
  const cudaError_t pending = cudaGetLastError();
  if (status == cudaSuccess) status = pending;
  // Worded other than what is wrong with an argument, which becomes a ValueError in Python.
  STD_TORCH_CHECK(status == cudaSuccess, "the CUDA kernel of `", op_,
                  "` was not launched: ", cudaGetErrorName(status), ", ",
                  cudaGetErrorString(status));
}

}  // namespace stc::bindings::cuda
