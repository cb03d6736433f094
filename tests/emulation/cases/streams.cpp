// SPDX-License-Identifier: Apache-2.0
// select_changed on several streams, in graphs, and when the slots of its tickets are taken.
#include "bound.h"
#include "launchers.h"
#include "ops.h"
#include "stc/ticket_slots.h"

using namespace stc;

namespace {
// Several launches on each of several streams at once; one recorded and replayed as well.
struct Job {
  Tensor x, y, sim, indices, counts;
  CosineParams p;
  SelectParams q;
  int64_t B;
};
Job job(Case& c, int64_t B, int64_t N, int64_t C, int64_t k, Dt dt) {
  Job j = {make("current", dt, {B, N, C}, emu::Kind::kInput),
           make("reference", dt, {B, N, C}, emu::Kind::kInput),
           output("similarity", Dt::kF32, {B, N}),
           output("indices", Dt::kI32, {B, k}),
           output("counts", Dt::kI32, {B}),
           {},
           {},
           B};
  fill(c.rng, j.x);
  fill(c.rng, j.y);
  j.p = {stc_of(dt), j.x.view(), j.y.view(), B * N, N, C, j.sim.as<float>()};
  j.q.scores = j.p.similarity;
  j.q.tokens = N;
  j.q.capacity = k;
  j.q.indices = j.indices.as<int32_t>();
  return j;
}
void check_job(Case& c, const Job& j) {
  check_cosine(c, j.x, j.y, j.sim);
  for (int64_t b = 0; b < j.B; ++b) {
    std::vector<float> scores;
    for (int64_t n = 0; n < j.q.tokens; ++n) scores.push_back(static_cast<float>(j.sim({b, n})));
    auto order = selection_order(scores, 0, false);
    order.resize(static_cast<size_t>(j.q.capacity));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < j.q.capacity; ++i)
      c.near("indices", j.indices({b, i}), static_cast<double>(order[static_cast<size_t>(i)]), 0,
             0);
  }
}

bool launch(const Job& j, cudaStream_t stream) {
  return stc::cuda::select_changed(j.p, j.q, j.B, stream) == cudaSuccess;
}

// How many launches a call on this stream makes.
uint64_t launches_of(Case& c, const Job& j, cudaStream_t stream) {
  const uint64_t before = emu::stats.launches;
  c.expect(launch(j, stream), "launch");
  emu::synchronize();
  return emu::stats.launches - before;
}
}  // namespace

void test_streams(Case& c, int) {
  c.what = "two or three streams, several launches each";
  emu::config.multiprocessors = static_cast<int>(c.rng.pick<int64_t>({2, 8, 132}));
  emu::config.resident = static_cast<int>(c.rng.between(2, 16));
  emu::config.slice = static_cast<int>(c.rng.pick<int64_t>({16, 64, 500}));
  emu::config.access_switch = c.rng.chance(30) ? 50 : 0;
  emu::config.seed = c.seed;
  const int64_t streams = c.rng.between(2, 3);
  std::vector<cudaStream_t> all;
  std::vector<Job> jobs;
  for (int64_t s = 0; s < streams; ++s) all.push_back(emu::new_stream());
  for (int64_t i = 0, n = c.rng.between(3, 8); i < n; ++i) {
    const int64_t N = c.rng.pick<int64_t>({17, 33, 90});
    jobs.push_back(job(c, c.rng.between(1, 3), N, c.rng.pick<int64_t>({8, 24, 136}),
                       c.rng.between(1, N), c.rng.pick({Dt::kF32, Dt::kF16, Dt::kBf16})));
  }
  emu::set_context(c.what + " seed " + std::to_string(c.seed));
  for (const Job& j : jobs) {
    const auto status =
        stc::cuda::select_changed(j.p, j.q, j.B, all[static_cast<size_t>(c.rng.below(streams))]);
    c.expect(status == cudaSuccess, "launch");
  }
  emu::synchronize();
  for (const Job& j : jobs) check_job(c, j);
  for (cudaStream_t s : all) emu::delete_stream(s);
}

void test_graphs(Case& c, int) {
  c.what = "recordings replayed beside launches on the stream they were made of";
  emu::config.multiprocessors = 8;
  emu::config.resident = static_cast<int>(c.rng.between(2, 16));
  emu::config.slice = static_cast<int>(c.rng.pick<int64_t>({16, 64, 500}));
  emu::config.seed = c.seed;
  const cudaStream_t a = emu::new_stream(), b = emu::new_stream();
  std::vector<Job> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back(job(c, c.rng.between(1, 2), 33, 24, 7, Dt::kBf16));
  emu::set_context(c.what + " seed " + std::to_string(c.seed));
  stc::cuda::select_changed(jobs[0].p, jobs[0].q, jobs[0].B, a);  // a slot of the stream itself
  emu::begin_capture(a);
  stc::cuda::select_changed(jobs[1].p, jobs[1].q, jobs[1].B, a);
  stc::cuda::select_changed(jobs[2].p, jobs[2].q, jobs[2].B, a);
  const cudaGraph_t first = emu::end_capture(a);
  emu::begin_capture(a);
  stc::cuda::select_changed(jobs[3].p, jobs[3].q, jobs[3].B, a);
  const cudaGraph_t second = emu::end_capture(a);
  emu::launch_graph(first, a);
  emu::launch_graph(second, b);  // at once with the first
  emu::launch_graph(first, a);
  stc::cuda::select_changed(jobs[4].p, jobs[4].q, jobs[4].B, a);
  emu::synchronize();
  for (const Job& j : jobs) check_job(c, j);
  emu::destroy_graph(first);
  emu::destroy_graph(second);
  emu::delete_stream(a);
  emu::delete_stream(b);
}

// All slots taken: launches in two steps; and slots come back when graphs go.
void test_slots(Case& c, int) {
  c.what = "1,024 slots";
  emu::config.resident = 4;
  emu::config.slice = 64;
  emu::config.access_switch = 0;
  emu::config.multiprocessors = 8;
  emu::set_context(c.what);
  Job j = job(c, 2, 9, 8, 3, Dt::kF32);
  const cudaStream_t s = emu::new_stream();
  std::vector<cudaGraph_t> graphs;
  for (int round = 0; round < 2; ++round) {
    int one = 0, two = 0;
    for (int i = 0; i < 1030; ++i) {
      emu::begin_capture(s);
      stc::cuda::select_changed(j.p, j.q, j.B, s);
      const cudaGraph_t g = emu::end_capture(s);
      graphs.push_back(g);
      if (i % 200 == 0 || i > 1000) {
        const uint64_t begin = emu::stats.launches;
        emu::launch_graph(g, s);
        emu::synchronize();
        (emu::stats.launches - begin == 1 ? one : two) += 1;
        check_job(c, j);
      }
    }
    c.expect(one > 0 && two > 0, "one launch while there are slots, two without: " +
                                     std::to_string(one) + " " + std::to_string(two));
    for (cudaGraph_t g : graphs) emu::destroy_graph(g);
    graphs.clear();
  }
  emu::delete_stream(s);
}

// Streams come and go: their slots serve others, and never while they are in use.
void test_dead_streams(Case& c, int) {
  c.what = "more streams than slots";
  emu::config.resident = 4;
  emu::config.slice = 64;
  emu::config.access_switch = 0;
  emu::config.multiprocessors = 8;
  emu::set_context(c.what);
  std::vector<Job> jobs;
  for (int i = 0; i < 12; ++i) jobs.push_back(job(c, 1, 9, 8, 3, Dt::kF32));
  std::vector<cudaGraph_t> graphs;  // take all slots but a few
  const cudaStream_t recorder = emu::new_stream();
  for (int i = 0; i < kTicketSlots - 8; ++i) {
    emu::begin_capture(recorder);
    c.expect(launch(jobs[0], recorder), "launch");
    graphs.push_back(emu::end_capture(recorder));
  }
  std::vector<cudaStream_t> streams;
  for (const Job& j : jobs) {  // at once: some go without a slot
    streams.push_back(emu::new_stream());
    c.expect(launch(j, streams.back()), "launch");
    if (streams.size() % 2 == 0) emu::delete_stream(streams.back());
  }
  emu::synchronize();
  for (const Job& j : jobs) check_job(c, j);
  for (int i = 0; i < 24; ++i) {
    const cudaStream_t s = emu::new_stream();
    c.expect(launches_of(c, jobs[1], s) == 1, "a slot of a stream was not given back");
    emu::delete_stream(s);
  }
  for (size_t i = 0; i < streams.size(); i += 2) emu::delete_stream(streams[i]);
  for (cudaGraph_t g : graphs) emu::destroy_graph(g);
  emu::delete_stream(recorder);
}
