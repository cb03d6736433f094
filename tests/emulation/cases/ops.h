// SPDX-License-Identifier: Apache-2.0
// The table of all cases, and what they share.
#pragma once
#include "case.h"

struct Op {
  const char* name;
  void (*test)(Case& c, int size);  // size 0: small, 1: medium, 2: limits
};
extern const std::vector<Op> all_ops;
extern const std::vector<Op> special_tests;

// The counters of select_changed: their memory, and telling the emulator of it.
uint32_t* ticket_memory(size_t* count);
void note_tickets();

// The order of selection by float scores: pinned, then NaN (lowest) or NaN last (highest).
void check_cosine(Case& c, const Tensor& x, const Tensor& y, const Tensor& similarity);
std::vector<int64_t> selection_order(const std::vector<float>& s, int64_t pinned, bool highest);
