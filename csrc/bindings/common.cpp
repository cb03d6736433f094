// SPDX-License-Identifier: Apache-2.0
#include "common.h"

#include <limits>
#include <memory>

#include "stc/simd.h"

namespace stc::bindings {

int64_t work(std::initializer_list<int64_t> sizes) {
  int64_t total = 1;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(total, size, &total)) return std::numeric_limits<int64_t>::max();
  }
  return total;
}

int64_t product(const char* op, std::initializer_list<int64_t> sizes) {
  const int64_t total = work(sizes);
  STD_TORCH_CHECK(total <= kMostElements, "`", op,
                  "`: the sizes of its arguments ask for more than 2**40 elements");
  return total;
}

void check_memory(const char* op, const char* name, const Tensor& t) {
  int64_t elements = 1, last = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &last));
  bool empty = false, bounded = true;
  for (int64_t i = 0, dim = t.dim(); i < dim; ++i) {
    const int64_t size = t.size(i);
    elements = work({elements, std::max<int64_t>(1, size)});
    empty |= size == 0;
    int64_t reach = 0;
    bounded = bounded && !__builtin_mul_overflow(size - 1, t.stride(i), &reach) &&
              !__builtin_add_overflow(last, reach, &last);
  }
  STD_TORCH_CHECK(elements <= (empty ? kMostOfEmpty : kMostElements), "`", op, "`: ", name,
                  " must have at most 2**40 elements, or 2**31 with sizes of 0 counted as 1");
  if (empty) return;
  int32_t dtype = 0;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  const int64_t element = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  const void* data = t.const_data_ptr();
  STD_TORCH_CHECK(bounded && data != nullptr && last < bytes / element, "`", op, "`: ", name,
                  " must lie within its storage, got one of ", bytes, " bytes");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element) == 0, "`", op,
                  "`: ", name, " must start at a multiple of its ", element, " bytes per element");
}

namespace {

template <typename T>
std::vector<int32_t> narrowed(const char* op, const Tensor& indices, int64_t tokens) {
  const T* data = static_cast<const T*>(indices.const_data_ptr());
  const int64_t batch = indices.size(0), picked = indices.size(1);
  const int64_t row = indices.stride(0), column = indices.stride(1);
  std::vector<int32_t> copy(static_cast<size_t>(batch * picked));
  int32_t* to = copy.data();
  int32_t low = 0, high = -1;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < picked; ++k) {
      // What does not fit is outside [-1, tokens), and so is what it becomes.
      const T index = data[b * row + k * column];
      const int32_t kept =
          static_cast<int32_t>(std::min<int64_t>(INT32_MAX, std::max<int64_t>(INT32_MIN, index)));
      low = std::min(low, kept);
      high = std::max(high, kept);
      *to++ = kept;
    }
  }
  if (low >= -1 && high < tokens) return copy;
  // Only to say which it is, as it stands in the tensor.
  int64_t lowest = low, highest = high;
  for (int64_t i = 0; i < batch * picked; ++i) {
    const int64_t index = data[i / picked * row + i % picked * column];
    lowest = std::min(lowest, index);
    highest = std::max(highest, index);
  }
  STD_TORCH_CHECK(false, "`", op, "`: indices must be between 0 and ", tokens - 1,
                  " (tokens), or -1, got ", lowest < -1 ? lowest : highest);
}

}  // namespace

std::vector<int32_t> checked_indices(const char* op, const Tensor& indices, int64_t batch,
                                     int64_t tokens) {
  check_dim(op, "indices", indices, 2);
  check_size(op, "indices", indices, 0, batch);
  // So that no index that fits is the one that stands for all that do not.
  check_tokens(op, tokens);
  if (indices.scalar_type() == ScalarType::Long) return narrowed<int64_t>(op, indices, tokens);
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Int, "`", op,
                  "`: indices must be int32 or int64");
  return narrowed<int32_t>(op, indices, tokens);
}

std::vector<float> to_floats(const char* op, const char* name, const Tensor& t, int64_t channels) {
  const DType dtype = dtype_of(op, name, t);
  check_dim(op, name, t, 1);
  check_size(op, name, t, 0, channels);
  const int64_t stride = t.stride(0);
  std::vector<float> out(static_cast<size_t>(channels));
  baseline::visit(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(t.const_data_ptr());
    for (int64_t i = 0; i < channels; ++i) {
      out[static_cast<size_t>(i)] = baseline::to_float(from[i * stride]);
    }
  });
  return out;
}

float* scratch_floats(int64_t count) {
  thread_local std::unique_ptr<float[]> kept;
  thread_local int64_t size = 0;
  constexpr int64_t kKeptFloats = kScratchBytes / 4;
  // Growing, or giving back what an unusually large call needed.
  if (count > size || size > kKeptFloats) {
    kept.reset();
    size = 0;
    kept.reset(new float[static_cast<size_t>(count)]);
    size = count;
  }
  return kept.get();
}

Tensor select_indices(const Tensor& scores, const Selection& how) {
  const int64_t rows = scores.size(0), tokens = scores.size(1);
  const Tensor indices = empty_like_device(scores, {rows, how.capacity}, ScalarType::Int);
  // There may be any number of rows where none needs memory.
  if (how.capacity == 0 && how.counts == nullptr) return indices;
  const Tensor keys = empty_like_device(scores, {rows, tokens}, ScalarType::Int);
  SelectParams p = {};
  p.scores = static_cast<const float*>(scores.const_data_ptr());
  p.tokens = tokens;
  p.capacity = how.capacity;
  p.pinned = how.pinned;
  p.highest = how.highest;
  p.below = how.threshold.has_value();
  p.threshold = static_cast<float>(how.threshold.value_or(0.0));
  p.keys = static_cast<uint32_t*>(keys.mutable_data_ptr());
  p.indices = static_cast<int32_t*>(indices.mutable_data_ptr());
  p.counts = how.counts;
  // Ten or so operations per token: worth a thread from a few thousand tokens on.
  parallel(rows, tokens * 8, [&](int64_t b, int64_t e) { kernels().select(p, b, e); });
  return indices;
}

Tensor packed_mask(const char* op, const char* name, const Tensor& mask, int64_t elements) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "`", op, "`: ", name,
                  " must be a bool mask");
  STD_TORCH_CHECK(mask.numel() == elements, "`", op, "`: ", name, " must have ", elements,
                  " elements, got ", mask.numel());
  check_memory(op, name, mask);
  return mask.is_contiguous() ? mask : torch::stable::contiguous(mask);
}

}  // namespace stc::bindings
