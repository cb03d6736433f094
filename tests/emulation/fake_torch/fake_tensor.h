// SPDX-License-Identifier: Apache-2.0
// As much of torch's stable ABI as the CUDA bindings use, over the tensors of the tests. What a
// binding frees lives until the emulator has run, as memory of torch's allocator does in the order
// of a stream.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace torch::headeronly {
enum class ScalarType : int8_t { Byte, Int, Half, Float, BFloat16, Bool, Long };
}
using AOTITorchError = int32_t;
#define TORCH_ERROR_CODE_CHECK(call) \
  if ((call) != 0) throw std::runtime_error("aoti call failed")
template <typename... T>
[[noreturn]] void fake_torch_fail(const T&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}
#define STD_TORCH_CHECK(condition, ...)             \
  do {                                              \
    if (!(condition)) fake_torch_fail(__VA_ARGS__); \
  } while (false)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) [[maybe_unused]] static void fake_library_##key(int m)

namespace torch::stable {
class Tensor {
 public:
  std::shared_ptr<void> memory;
  char* data = nullptr;
  headeronly::ScalarType type = headeronly::ScalarType::Float;
  std::vector<int64_t> sizes, strides;
  int64_t storage_offset = 0, storage_bytes = 0;
  const Tensor* get() const { return this; }
  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
  int64_t size(int64_t i) const { return sizes.at(static_cast<size_t>(i < 0 ? i + dim() : i)); }
  int64_t stride(int64_t i) const { return strides.at(static_cast<size_t>(i < 0 ? i + dim() : i)); }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : sizes) n *= s;
    return n;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
      if (sizes[i] != 1 && strides[i] != expected) return false;
      expected *= sizes[i];
    }
    return true;
  }
  headeronly::ScalarType scalar_type() const { return type; }
  const void* const_data_ptr() const { return numel() == 0 ? nullptr : data; }
  void* mutable_data_ptr() const { return numel() == 0 ? nullptr : data; }
  bool is_cuda() const { return true; }
  int32_t get_device_index() const { return 0; }
};
Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes,
                 headeronly::ScalarType type);
Tensor contiguous(const Tensor& t);
inline Tensor narrow(Tensor& t, int64_t, int64_t, int64_t) { return t; }
inline Tensor zero_(Tensor& t) { return t; }
inline int64_t get_num_threads() { return 1; }
template <typename F>
void parallel_for(int64_t b, int64_t e, int64_t, const F& f) {
  f(b, e);
}
namespace accelerator {
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};
}  // namespace accelerator
}  // namespace torch::stable

// The C functions, of a tensor as `get` gives it.
inline AOTITorchError aoti_torch_get_storage_offset(const torch::stable::Tensor* t, int64_t* to) {
  *to = t->storage_offset;
  return 0;
}
inline AOTITorchError aoti_torch_get_storage_size(const torch::stable::Tensor* t, int64_t* bytes) {
  *bytes = t->storage_bytes;
  return 0;
}
inline AOTITorchError aoti_torch_get_dtype(const torch::stable::Tensor* t, int32_t* dtype) {
  *dtype = static_cast<int32_t>(t->type);
  return 0;
}
inline size_t aoti_torch_dtype_element_size(int32_t dtype) {
  using torch::headeronly::ScalarType;
  switch (static_cast<ScalarType>(dtype)) {
    case ScalarType::Long:
      return 8;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    default:
      return 1;
  }
}
