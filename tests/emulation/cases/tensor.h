// SPDX-License-Identifier: Apache-2.0
// Random numbers, tensors in allocations of their own, and the layouts that views have.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emu.h"
#include "stc/types.h"

struct Rng {
  uint64_t s;
  explicit Rng(uint64_t seed) : s(seed * 0x9e3779b97f4a7c15ull + 12345) {
    for (int i = 0; i < 8; ++i) next();
  }
  uint64_t next() {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    return s * 2685821657736338717ull >> 11;
  }
  int64_t below(int64_t n) {
    return n <= 0 ? 0 : static_cast<int64_t>(next() % static_cast<uint64_t>(n));
  }
  int64_t between(int64_t a, int64_t b) { return a + below(b - a + 1); }
  bool chance(int percent) { return below(100) < percent; }
  double uniform() { return static_cast<double>(next() & 0xffffff) / 0x1000000; }
  double normal() {
    double x = 0;
    for (int i = 0; i < 4; ++i) x += uniform();
    return (x - 2.0) * 1.7320508;
  }
  template <typename T>
  T pick(std::initializer_list<T> l) {
    return l.begin()[below(static_cast<int64_t>(l.size()))];
  }
};

enum class Dt { kF32, kF16, kBf16, kI32, kI64, kU8, kByte };  // kU8: a bool
inline size_t size_of(Dt d) {
  switch (d) {
    case Dt::kF32:
    case Dt::kI32:
      return 4;
    case Dt::kI64:
      return 8;
    case Dt::kU8:
    case Dt::kByte:
      return 1;
    default:
      return 2;
  }
}
inline stc::DType stc_of(Dt d) {
  return d == Dt::kF32   ? stc::DType::kFloat32
         : d == Dt::kF16 ? stc::DType::kFloat16
                         : stc::DType::kBFloat16;
}
inline const char* name_of(Dt d) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "i32", "i64", "u8", "byte"};
  return kNames[static_cast<int>(d)];
}
inline double round_to(Dt d, double x) {
  const auto f = static_cast<float>(x);
  if (d == Dt::kF16) return emu::half_to_float(emu::float_to_half(f));
  if (d == Dt::kBf16) return emu::bf16_to_float(emu::float_to_bf16(f));
  return f;
}

// A tensor in an allocation of its own, which ends with its last element.
struct Tensor {
  Dt dt = Dt::kF32;
  std::vector<int64_t> size, stride;
  int64_t offset = 0;
  std::string name;
  emu::Kind kind = emu::Kind::kInput;
  size_t bytes = 0;
  std::shared_ptr<void> memory;
  std::vector<unsigned char> initial;

  char* base() const { return static_cast<char*>(memory.get()); }
  char* data() const { return base() + static_cast<size_t>(offset) * size_of(dt); }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : size) n *= s;
    return n;
  }
  int64_t at(std::initializer_list<int64_t> i) const {
    int64_t o = 0;
    for (size_t d = 0; d < size.size(); ++d) o += i.begin()[d] * stride[d];
    return o;
  }
  double get(int64_t o) const {
    const char* p = data() + o * static_cast<int64_t>(size_of(dt));
    switch (dt) {
      case Dt::kF32: {
        float f;
        std::memcpy(&f, p, 4);
        return f;
      }
      case Dt::kI32: {
        int32_t f;
        std::memcpy(&f, p, 4);
        return f;
      }
      case Dt::kU8:
      case Dt::kByte:
        return static_cast<unsigned char>(*p);
      case Dt::kF16: {
        uint16_t h;
        std::memcpy(&h, p, 2);
        return emu::half_to_float(h);
      }
      default: {
        uint16_t h;
        std::memcpy(&h, p, 2);
        return emu::bf16_to_float(h);
      }
    }
  }
  void set(int64_t o, double x) const {
    char* p = data() + o * static_cast<int64_t>(size_of(dt));
    const auto f = static_cast<float>(x);
    switch (dt) {
      case Dt::kF32:
        std::memcpy(p, &f, 4);
        break;
      case Dt::kI32: {
        const auto v = static_cast<int32_t>(x);
        std::memcpy(p, &v, 4);
        break;
      }
      case Dt::kU8:
      case Dt::kByte:
        *p = static_cast<char>(static_cast<int>(x));
        break;
      case Dt::kF16: {
        const uint16_t h = emu::float_to_half(f);
        std::memcpy(p, &h, 2);
        break;
      }
      default: {
        const uint16_t h = emu::float_to_bf16(f);
        std::memcpy(p, &h, 2);
        break;
      }
    }
  }
  double operator()(std::initializer_list<int64_t> i) const { return get(at(i)); }
  void put(std::initializer_list<int64_t> i, double x) const { set(at(i), x); }
  // Every element by its place in a contiguous tensor of that shape.
  int64_t nth(int64_t n) const {
    int64_t o = 0;
    for (size_t d = size.size(); d-- > 0;) {
      o += n % size[d] * stride[d];
      n /= size[d];
    }
    return o;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(static_cast<void*>(data()));
  }

  stc::TokenView view() const {
    const size_t d = size.size();
    return {data(), d == 3 ? stride[0] : 0, stride[d - 2], stride[d - 1]};
  }
  stc::MutableTokenView mutable_view() const { return {data(), stride[0], stride[1], stride[2]}; }
  stc::HeadView heads() const { return {data(), stride[0], stride[1], stride[2], stride[3]}; }
  stc::ChannelVector channels() const {
    return memory == nullptr ? stc::ChannelVector{}
                             : stc::ChannelVector{stc_of(dt), data(), stride[0]};
  }
  explicit operator bool() const { return memory != nullptr; }
};

inline Tensor make(const char* name, Dt dt, std::vector<int64_t> size, emu::Kind kind,
                   std::vector<int64_t> stride = {}, int64_t offset = 0) {
  Tensor t;
  t.dt = dt;
  t.name = name;
  t.kind = kind;
  t.size = size;
  if (stride.empty()) {
    stride.assign(size.size(), 1);
    for (size_t d = size.size(); d-- > 1;)
      stride[d - 1] = stride[d] * std::max<int64_t>(1, size[d]);
  }
  t.stride = stride;
  t.offset = offset;
  int64_t last = 0;
  bool empty = false;
  for (size_t d = 0; d < size.size(); ++d) {
    if (size[d] == 0) empty = true;
    last += (size[d] - 1) * stride[d];
  }
  t.bytes = static_cast<size_t>(empty ? 0 : offset + last + 1) * size_of(dt);
  void* p = nullptr;
  if (t.bytes > (size_t{1} << 30)) {  // of which few pages are touched
    const size_t bytes = t.bytes;
    p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
             -1, 0);
    if (p == MAP_FAILED) std::abort();
    t.memory = std::shared_ptr<void>(p, [bytes](void* q) {
      emu::remove_memory(q);
      munmap(q, bytes);
    });
    emu::add_memory(p, t.bytes, size_of(dt), kind, name);
    return t;
  }
  if (posix_memalign(&p, 256, std::max<size_t>(t.bytes, 1)) != 0) std::abort();
  std::memset(p, 0xff, std::max<size_t>(t.bytes, 1));
  t.memory = std::shared_ptr<void>(p, [](void* q) {
    emu::remove_memory(q);
    std::free(q);
  });
  emu::add_memory(p, t.bytes, size_of(dt), kind, name);
  return t;
}
inline Tensor output(const char* name, Dt dt, std::vector<int64_t> size) {
  return make(name, dt, std::move(size), emu::Kind::kUninitialised);
}

// Layouts that views of larger tensors have.
inline Tensor laid_out(Rng& rng, const char* name, Dt dt, std::vector<int64_t> size,
                       emu::Kind kind = emu::Kind::kInput, int how = -1) {
  if (how < 0)
    how = rng.chance(50) ? 0 : static_cast<int>(rng.between(1, kind == emu::Kind::kInput ? 9 : 8));
  const size_t d = size.size();
  std::vector<int64_t> stride(d, 1);
  int64_t offset = 0, pad = 0, step = 1;
  if (how == 1) pad = 8 * rng.between(1, 3);  // still in steps of 16 bytes
  if (how == 2) pad = rng.between(1, 5);
  if (how == 3) offset = rng.between(1, 7);
  if (how == 4) offset = 8 * rng.between(1, 5);
  if (how == 5) step = rng.between(2, 3);
  stride[d - 1] = step;
  if (d >= 2) stride[d - 2] = size[d - 1] * step + pad;
  for (size_t i = d - 1; i-- > 1;)
    stride[i - 1] = stride[i] * size[i] + (how == 4 ? 16 : how == 2 ? 1 : 0);
  if (how == 9 && d >= 2) {  // offsets beyond 32 bits
    const int64_t far = (int64_t{1} << 31) + 8 * rng.between(0, 3);
    if (rng.chance(50) && d >= 3)
      stride[0] = far;
    else if (size[d - 2] <= 40) {
      stride[d - 2] = far;
      for (size_t i = d - 2; i-- > 0;) stride[i] = stride[i + 1] * size[i + 1];
    }
  }
  if (how == 8 && d >= 3) stride[0] += rng.between(1, 7);  // only the outermost is odd
  if (how == 6 && d >= 2) {                                // channels outermost
    stride[d - 2] = 1;
    for (size_t i = d - 2; i-- > 0;) stride[i] = stride[i + 1] * size[i + 1];
    stride[d - 1] = stride[0] * size[0];
  }
  if (how == 7 && d == 3) {  // tokens outermost: a transposed batch
    stride[0] = size[2];
    stride[1] = size[0] * size[2];
  }
  return make(name, dt, size, kind, stride, offset);
}

inline void fill(Rng& rng, const Tensor& t, double scale = 1.0, double shift = 0.0) {
  for (int64_t i = 0, n = t.numel(); i < n; ++i) t.set(t.nth(i), scale * rng.normal() + shift);
}
