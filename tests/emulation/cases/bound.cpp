// SPDX-License-Identifier: Apache-2.0
#include "bound.h"

#include <dlfcn.h>
#include <unistd.h>

#include <fstream>

#include "stc/kernel_table.h"

namespace stc {
const KernelTable& kernels() {  // of the CPU, which nothing here calls
  static const KernelTable none = {};
  return none;
}
}  // namespace stc

namespace {
std::vector<Tensor> buried;  // until the emulator has run
Dt dt_of(torch::headeronly::ScalarType t) {
  using S = torch::headeronly::ScalarType;
  switch (t) {
    case S::Float:
      return Dt::kF32;
    case S::Half:
      return Dt::kF16;
    case S::BFloat16:
      return Dt::kBf16;
    case S::Int:
      return Dt::kI32;
    case S::Long:
      return Dt::kI64;
    default:
      return Dt::kU8;
  }
}
}  // namespace

Bound bound(const Tensor& t) {
  using S = torch::headeronly::ScalarType;
  Bound b;
  b.memory = t.memory;
  b.data = t.data();
  switch (t.dt) {
    case Dt::kF32:
      b.type = S::Float;
      break;
    case Dt::kF16:
      b.type = S::Half;
      break;
    case Dt::kBf16:
      b.type = S::BFloat16;
      break;
    case Dt::kI32:
      b.type = S::Int;
      break;
    case Dt::kI64:
      b.type = S::Long;
      break;
    case Dt::kU8:
      b.type = S::Bool;
      break;
    case Dt::kByte:
      b.type = S::Byte;
      break;
  }
  b.sizes = t.size;
  b.storage_offset = t.offset;
  b.storage_bytes = static_cast<int64_t>(t.bytes);
  b.strides = t.stride;
  return b;
}

namespace torch::stable {
Tensor new_empty(const Tensor&, const std::vector<int64_t>& sizes, headeronly::ScalarType type) {
  buried.push_back(output("made by a binding", dt_of(type), sizes));
  Tensor b = bound(buried.back());
  b.type = type;
  return b;
}
Tensor contiguous(const Tensor& t) {
  Tensor to = new_empty(t, t.sizes, t.type);
  buried.back().kind = emu::Kind::kInOut;
  emu::remove_memory(buried.back().base());
  const size_t unit = size_of(dt_of(t.type));
  emu::add_memory(buried.back().base(), buried.back().bytes, unit, emu::Kind::kInOut,
                  "made contiguous");
  const int64_t n = t.numel();
  for (int64_t i = 0; i < n; ++i) {
    int64_t rest = i, at = 0;
    for (size_t d = t.sizes.size(); d-- > 0;)
      at += rest % t.sizes[d] * t.strides[d], rest /= t.sizes[d];
    std::memcpy(to.data + static_cast<size_t>(i) * unit, t.data + static_cast<size_t>(at) * unit,
                unit);
  }
  return to;
}
}  // namespace torch::stable

std::string call_folder;
size_t bytes_of_last_call = 0;

bool load_fake_torch() {
  // Beside the program: AddressSanitizer's dlopen does not look at the run path.
  char path[4096] = {};
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
  std::string at(path, n > 0 ? static_cast<size_t>(n) : 0);
  at = at.substr(0, at.rfind('/') + 1) + "libtorch_cuda.so";
  return dlopen(at.c_str(), RTLD_NOW) != nullptr;
}

void compare_bound(Case& c, const std::function<std::vector<Bound>()>& call, const Results& want,
                   const std::vector<Tensor*>& in_place) {
  std::vector<std::vector<unsigned char>> made;
  for (Tensor* t : in_place) {
    made.emplace_back(t->base(), t->base() + t->bytes);
    std::memcpy(t->base(), t->initial.data(), t->bytes);
  }
  emu::config.seed = c.seed + 77;
  emu::config.resident = 6;
  emu::config.access_switch = 0;
  emu::set_context(c.what + " seed " + std::to_string(c.seed) + " through the binding");
  std::vector<Bound> got;
  try {
    got = call();
  } catch (const std::exception& error) {
    c.fail(std::string("binding: ") + error.what());
  }
  emu::synchronize();
  if (got.size() != want.size()) c.fail("binding: number of results");
  for (size_t i = 0; i < got.size() && i < want.size(); ++i) {
    c.expect(got[i].sizes == want[i]->size, "binding: shape of " + want[i]->name);
    const size_t bytes = static_cast<size_t>(got[i].numel()) * size_of(want[i]->dt);
    c.expect(std::memcmp(got[i].data, want[i]->data(), bytes) == 0,
             "binding: " + want[i]->name + " differs");
  }
  for (size_t i = 0; i < in_place.size(); ++i) {
    c.expect(std::memcmp(in_place[i]->base(), made[i].data(), made[i].size()) == 0,
             "binding: " + in_place[i]->name + " differs");
  }
  bytes_of_last_call = 0;
  for (const Tensor& t : buried) bytes_of_last_call += t.bytes;
  buried.clear();
}

WrittenCall::WrittenCall(const Case& c, const char* op)
    : path_(call_folder + "/" + op + "-" + std::to_string(c.size) + "-" + std::to_string(c.seed)) {
  text_ = std::string("{\"op\": \"") + op + "\", \"arguments\": [";
}
void WrittenCall::append(const Tensor& t) {
  const auto list = [](const std::vector<int64_t>& numbers) {
    std::string text = "[";
    for (int64_t n : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
    return text + "]";
  };
  too_large_ = too_large_ || t.bytes > (size_t{1} << 22);
  if (too_large_) return;
  text_ += std::string("{\"dtype\": \"") + name_of(t.dt) + "\", \"size\": " + list(t.size) +
           ", \"stride\": " + list(t.stride) + ", \"offset\": " + std::to_string(t.offset) +
           ", \"at\": " + std::to_string(numbers_.size()) +
           ", \"bytes\": " + std::to_string(t.bytes) + "}, ";
}
void WrittenCall::add(const Tensor& t) {
  if (!t) {
    text_ += "null, ";
    return;
  }
  append(t);
  if (too_large_) return;
  if (t.initial.empty()) {
    numbers_.append(t.base(), t.bytes);
  } else {  // written in place
    numbers_.append(t.initial.begin(), t.initial.end());
  }
}
void WrittenCall::add(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g, ", x);
  text_ += std::isnan(x) ? "NaN, " : std::isinf(x) ? (x > 0 ? "Infinity, " : "-Infinity, ") : text;
}
void WrittenCall::add(int64_t x) { text_ += std::to_string(x) + ", "; }
void WrittenCall::add(const std::string& x) { text_ += "\"" + x + "\", "; }
void WrittenCall::finish(const Results& results) {
  const auto end_list = [this] {
    if (text_.ends_with(", ")) text_.resize(text_.size() - 2);
    text_ += "]";
  };
  end_list();
  text_ += ", \"results\": [";
  for (const Tensor* t : results) {
    append(*t);
    if (!too_large_) numbers_.append(t->base(), t->bytes);
  }
  end_list();
  if (too_large_) return;
  std::ofstream(path_ + ".json") << text_ << "}\n";
  std::ofstream(path_ + ".bin", std::ios::binary) << numbers_;
}
