// SPDX-License-Identifier: Apache-2.0
// Calls the bindings with the tensors of a case: what they make must be what the launchers made,
// bit for bit. The call can also be written to a file, for the references in Python.
#pragma once
#include <optional>
#include <tuple>
#include <type_traits>

#include "bindings/cuda/common.h"
#include "case.h"
#include "fake_tensor.h"

namespace bind = stc::bindings::cuda;

using Bound = torch::stable::Tensor;
Bound bound(const Tensor& t);

// One argument as the bindings take it: an empty tensor is one that is not given.
template <typename To, typename From>
To as_argument(const From& value) {
  if constexpr (!std::is_same_v<From, Tensor>) {
    return static_cast<To>(value);
  } else if constexpr (std::is_same_v<To, std::optional<Bound>>) {
    return value ? To(bound(value)) : std::nullopt;
  } else {
    return bound(value);
  }
}
inline std::vector<Bound> listed(const Bound& one) { return {one}; }
template <typename... T>
std::vector<Bound> listed(const std::tuple<T...>& all) {
  return std::apply([](const auto&... each) { return std::vector<Bound>{each...}; }, all);
}

// The library in which the bindings look for torch's stream. False if it is not there.
bool load_fake_torch();
// Where calls are written to; empty: nowhere.
extern std::string call_folder;
// A call as JSON, with the numbers of its tensors as they were before it.
class WrittenCall {
 public:
  WrittenCall(const Case& c, const char* op);
  void add(const Tensor& t);
  void add(double x);
  void add(int64_t x);
  void add(const std::string& x);
  void finish(const std::vector<const Tensor*>& results);

 private:
  std::string path_, text_, numbers_;
  bool too_large_ = false;
  void append(const Tensor& t);
};

using Results = std::vector<const Tensor*>;
// What a binding has allocated in the last call, results and scratch.
extern size_t bytes_of_last_call;
void compare_bound(Case& c, const std::function<std::vector<Bound>()>& call, const Results& want,
                   const std::vector<Tensor*>& in_place);

// `want` are what the launcher has returned; those `in_place` are given back their first contents.
template <typename R, typename... P, typename... A>
void check_bound(Case& c, const char* op, R (*binding)(P...), const Results& want,
                 const std::vector<Tensor*>& in_place, const A&... arguments) {
  if (!call_folder.empty()) {
    WrittenCall written(c, op);
    (written.add(arguments), ...);
    written.finish(in_place.empty() ? want : Results(in_place.begin(), in_place.end()));
  }
  const auto call = [&]() -> std::vector<Bound> {
    if constexpr (std::is_void_v<R>) {
      binding(as_argument<std::decay_t<P>>(arguments)...);
      return {};
    } else {
      return listed(binding(as_argument<std::decay_t<P>>(arguments)...));
    }
  };
  compare_bound(c, call, want, in_place);
}
