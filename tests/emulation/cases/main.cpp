// SPDX-License-Identifier: Apache-2.0
// Runs cases; the exit status is 1 where one fails. See usage().
#include <chrono>
#include <fstream>

#include "bound.h"
#include "ops.h"

namespace {

struct Options {
  std::string op, kernels;
  int cases = 10, size = 0, schedules = 3;
  uint64_t seed = 1;
  double seconds = 1e9;
};

[[noreturn]] void usage() {
  std::fputs(
      "emulate [--op NAME] [--size 0|1|2] [--cases N] [--seconds S] [--seed S] [--schedules K]\n"
      "        [--kernels FILE] [--calls FOLDER]\n"
      "Runs up to N cases of an operator or of all, for at most S seconds. --kernels adds the\n"
      "addresses of the kernels that ran to a file; --calls writes each call with its results.\n",
      stderr);
  std::_Exit(2);
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 == argc) usage();
    const std::string value = argv[++i];
    if (name == "--op")
      o.op = value;
    else if (name == "--cases")
      o.cases = std::stoi(value);
    else if (name == "--size")
      o.size = std::stoi(value);
    else if (name == "--seed")
      o.seed = std::stoull(value);
    else if (name == "--schedules")
      o.schedules = std::stoi(value);
    else if (name == "--seconds")
      o.seconds = std::stod(value);
    else if (name == "--kernels")
      o.kernels = value;
    else if (name == "--calls")
      call_folder = value;
    else
      usage();
  }
  return o;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check_tickets(Case& c) {
  size_t count = 0;
  uint32_t* tickets = ticket_memory(&count);
  if (std::all_of(tickets, tickets + count, [](uint32_t t) { return t == 0; })) return;
  c.fail("tickets are not zero afterwards");
  std::memset(tickets, 0, count * sizeof(uint32_t));
}

// True where the case passed; what is wrong is printed of the first three.
bool run_case(const Op& op, const Options& o, uint64_t seed, int printed) {
  Case c(seed);
  c.schedules = o.schedules;
  c.size = o.size;
  op.test(c, o.size);
  const std::string found = emu::take_findings();
  check_tickets(c);
  if (c.errors.empty() && found.empty()) return true;
  if (printed < 3) {
    std::printf("FAIL %s seed %llu: %s\n", op.name, static_cast<unsigned long long>(seed),
                c.what.c_str());
    for (const auto& e : c.errors) std::printf("   %s\n", e.c_str());
    std::printf("%s", found.c_str());
  }
  return false;
}

int run_op(const Op& op, const Options& o) {
  const double begin = now();
  emu::stats = {};
  int ran = 0, bad = 0;
  for (; ran < o.cases && now() - begin < o.seconds; ++ran) {
    bad += !run_case(op, o, o.seed + static_cast<uint64_t>(ran), bad);
  }
  const auto& s = emu::stats;
  std::printf(
      "%-24s size %d %5d cases %3d bad %6llu launches %9llu threads %10llu switches "
      "%10llu accesses %5.1f s\n",
      op.name, o.size, ran, bad, static_cast<unsigned long long>(s.launches),
      static_cast<unsigned long long>(s.threads), static_cast<unsigned long long>(s.switches),
      static_cast<unsigned long long>(s.accesses), now() - begin);
  std::fflush(stdout);
  return bad;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  note_tickets();
  if (!load_fake_torch()) {
    std::fputs("libtorch_cuda.so is not beside the program\n", stderr);
    return 2;
  }
  int failed = 0, chosen = 0;
  std::vector<Op> ops = all_ops;
  if (!o.op.empty()) ops.insert(ops.end(), special_tests.begin(), special_tests.end());
  for (const Op& op : ops) {
    if (!o.op.empty() && o.op != op.name) continue;
    ++chosen;
    failed += run_op(op, o);
  }
  if (chosen == 0) usage();
  if (!o.kernels.empty()) {
    std::ofstream file(o.kernels, std::ios::app);
    for (const void* kernel : emu::launched_kernels()) file << kernel << "\n";
  }
  std::fflush(stdout);
  std::_Exit(failed == 0 ? 0 : 1);  // without waiting for the threads of the emulator
}
