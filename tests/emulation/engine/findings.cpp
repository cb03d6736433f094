// SPDX-License-Identifier: Apache-2.0
// What was found, the seeded generator, and the memory that the emulated GPU has.
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "engine.h"

namespace emu {

Config config;
Stats stats;
std::vector<Memory*> memories;
uint64_t memory_version = 1;
std::vector<DynamicShared> dynamic_shared;
std::vector<LaunchInfo> launch_infos(1);

namespace {

// ---- randomness ----
uint64_t rng_state = 88172645463325252ull;

// ---- findings ----
struct Finding {
  uint64_t count = 0;
  std::string text;
};
std::map<std::pair<std::string, uintptr_t>, Finding> found;
uint64_t found_count = 0;
std::string context;

}  // namespace

void seed_draws(uint64_t seed) {
  rng_state = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
  for (int i = 0; i < 4; ++i) draw();
}

uint64_t draw() {
  rng_state ^= rng_state << 13;
  rng_state ^= rng_state >> 7;
  rng_state ^= rng_state << 17;
  return rng_state * 2685821657736338717ull >> 16;
}

std::string name_of(const void* fn) {
  Dl_info info;
  if (dladdr(fn, &info) == 0 || info.dli_sname == nullptr) {
    char text[32];
    std::snprintf(text, sizeof text, "kernel@%p", fn);
    return text;
  }
  int status = 0;
  char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : info.dli_sname;
  std::free(plain);
  // Without the parameters, whose parenthesis is the last one that opens outside of <>.
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

void report(const char* kind, const void* site, const std::string& detail) {
  Finding& f = found[{kind, reinterpret_cast<uintptr_t>(site)}];
  ++found_count;
  if (f.count++ > 0) return;
  char where[160];
  if (cur != nullptr) {
    std::snprintf(where, sizeof where, " block %u thread %d epoch %u", cur->block->index, cur->tid,
                  cur->block->epoch);
  } else {
    where[0] = 0;
  }
  char at[32];
  std::snprintf(at, sizeof at, "0x%zx", reinterpret_cast<size_t>(site));
  f.text = std::string(kind) + " at " + at + " in " +
           (cur != nullptr ? name_of(cur->block->launch->fn) : std::string("host")) + where + ": " +
           detail + " [" + context + "]";
}

uint64_t findings() { return found_count; }
std::string take_findings() {
  std::string all;
  for (const auto& [key, f] : found)
    all += "FINDING x" + std::to_string(f.count) + " " + f.text + "\n";
  found.clear();
  found_count = 0;
  return all;
}
void set_context(const std::string& what) { context = what; }

// ---- memory ----
void add_memory(const void* p, size_t bytes, size_t unit, Kind kind, const char* name) {
  auto* m = new Memory;
  m->lo = reinterpret_cast<uintptr_t>(p);
  m->hi = m->lo + bytes;
  m->unit = unit;
  m->read_only = kind == Kind::kInput;
  m->written = kind != Kind::kUninitialised;
  m->name = name;
  if (!m->read_only) m->cells.resize((bytes + unit - 1) / unit);
  const auto at = std::upper_bound(memories.begin(), memories.end(), m,
                                   [](const Memory* a, const Memory* b) { return a->lo < b->lo; });
  memories.insert(at, m);
  ++memory_version;
}
void remove_memory(const void* p) {
  const auto lo = reinterpret_cast<uintptr_t>(p);
  for (auto i = memories.begin(); i != memories.end(); ++i) {
    if ((*i)->lo == lo) {
      delete *i;
      memories.erase(i);
      ++memory_version;
      return;
    }
  }
}
Memory* find_memory(uintptr_t a) {
  auto i = std::upper_bound(memories.begin(), memories.end(), a,
                            [](uintptr_t x, const Memory* m) { return x < m->lo; });
  if (i == memories.begin()) return nullptr;
  Memory* m = *--i;
  return a < m->hi ? m : nullptr;
}
void add_dynamic_shared(const void* p, size_t bytes, const char* name) {
  const auto tp = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
  dynamic_shared.push_back({tp - reinterpret_cast<uintptr_t>(p), bytes, name});
}

}  // namespace emu
