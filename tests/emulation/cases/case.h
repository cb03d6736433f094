// SPDX-License-Identifier: Apache-2.0
// One case: its random numbers, what it found, and the runs of a launch under several schedules.
#pragma once
#include <array>
#include <functional>

#include "tensor.h"

struct Case {
  Rng rng;
  std::string what;
  std::vector<Tensor*> outputs;
  std::vector<std::string> errors;
  int schedules = 2;
  uint64_t seed = 0;
  int size = 0;
  explicit Case(uint64_t s) : rng(s), seed(s) {}

  // Of cases in a row each of the three.
  Dt float_type() const { return std::array{Dt::kF32, Dt::kF16, Dt::kBf16}[seed % 3]; }

  void fail(const std::string& why) {
    if (errors.size() < 4) errors.push_back(why);
  }
  void expect(bool holds, const std::string& why) {
    if (!holds) fail(why);
  }
  void near(const char* name, double got, double want, double absolute, double relative) {
    const bool same = (std::isnan(got) && std::isnan(want)) || got == want ||
                      std::fabs(got - want) <= absolute + relative * std::fabs(want);
    if (!same) {
      char text[160];
      std::snprintf(text, sizeof text, "%s: got %.9g, want %.9g", name, got, want);
      fail(text);
    }
  }
  // Launches under several schedules; all must give the same bits.
  void run(const std::function<cudaError_t(cudaStream_t)>& launch) {
    std::vector<std::vector<unsigned char>> first;
    for (Tensor* t : outputs) {
      if (t->kind == emu::Kind::kInOut) t->initial.assign(t->base(), t->base() + t->bytes);
    }
    for (int s = 0; s < schedules; ++s) {
      emu::config.seed = seed * 1000 + static_cast<uint64_t>(s);
      emu::config.resident = s == 0 ? 1 : static_cast<int>(rng.between(2, 12));
      emu::config.slice = static_cast<int>(size == 0 ? rng.pick<int64_t>({24, 64, 1000})
                                                     : rng.pick<int64_t>({400, 2000, 10000}));
      emu::config.access_switch =
          s % 3 == 1 ? static_cast<int>(rng.pick<int64_t>({7, 50, 400})) : 0;
      emu::config.multiprocessors = static_cast<int>(rng.pick<int64_t>({1, 2, 4, 13, 132}));
      for (Tensor* t : outputs) {
        emu::remove_memory(t->base());
        emu::add_memory(t->base(), t->bytes, size_of(t->dt), t->kind, t->name.c_str());
        if (t->kind == emu::Kind::kInOut)
          std::memcpy(t->base(), t->initial.data(), t->bytes);
        else
          std::memset(t->base(), 0xff, t->bytes);
      }
      emu::set_context(what + " seed " + std::to_string(seed) + " schedule " + std::to_string(s));
      const cudaError_t status = launch(nullptr);
      if (status != cudaSuccess) fail("launch error " + std::to_string(status));
      emu::synchronize();
      size_t i = 0;
      for (Tensor* t : outputs) {
        if (t->name[0] == '_') continue;  // scratch
        std::vector<unsigned char> now(t->base(), t->base() + t->bytes);
        if (s == 0)
          first.push_back(now);
        else if (first[i] != now)
          fail(t->name + " differs between schedules");
        ++i;
      }
    }
  }
};
