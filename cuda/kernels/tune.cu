/*
 * tune.cu: times what could compute a product, and reads the lines that such timings left. Each candidate runs in a graph
 * as it would in a model: after a small op, on weights that no cache holds, since more of them take turns than L2 can keep.
 */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>
#include <sstream>

#include "linear.h"

namespace minisgl {
namespace {

constexpr int64_t cold_bytes = 192 << 20;  // of weights in turn: L2 has 50 or 60 MB
constexpr int finalists = 5;

/* Buffers for a product of this shape, and its arguments for the weight of each turn. */
struct Bench {
  Bench(msgl_device *device, const Shape &shape, int32_t dtype, int32_t out_dtype)
      : shape(shape),
        x(elements(shape.k)),
        normed(elements(shape.k)),
        norm(static_cast<size_t>(shape.k) * 2),
        gate_up(elements(shape.n)),
        out(elements(2 * shape.n)) {
    const int64_t bytes = shape.n * shape.k * 2;
    const int count = static_cast<int>(std::clamp<int64_t>(cold_bytes / bytes + 1, 1, 32));
    const float scale = 1.7f / std::sqrt(static_cast<float>(shape.k));
    for (int i = 0; i < count; i++) {
      weights.push_back(std::make_unique<msgl_weight>(shape.n, shape.k, dtype));
      enqueue_random(device, weights[i]->memory.get(), shape.n * shape.k, dtype, i, scale);
    }
    enqueue_random(device, x.get(), shape.tokens * shape.k, dtype, 1, 1.f);
    enqueue_random(device, norm.get(), shape.k, dtype, 2, 1.f);
    enqueue_random(device, out.get(), shape.tokens * shape.n, out_dtype, 3, 1.f);
    base = {out.get(), normed.get(), nullptr, nullptr, shape.tokens, dtype, out_dtype, shape.form == Form::add};
    base.gated = shape.form == Form::gated;
  }
  size_t elements(int64_t columns) const { return static_cast<size_t>(shape.tokens * columns * 2); }

  LinearArguments arguments(int turn) const {
    LinearArguments a = base;
    a.weight = weights[turn % weights.size()].get();
    return a;
  }

  Shape shape;
  DeviceBuffer x, normed, norm, gate_up, out;
  std::vector<std::unique_ptr<msgl_weight>> weights;
  LinearArguments base{};
};

struct Candidate {
  Algorithm algorithm;
  LinearChoice choice;
  float microseconds;
};

std::vector<TiledPlan> plans(const Shape &shape, int multiprocessors) {
  std::vector<TiledPlan> result;
  if (shape.tokens > 256) return result;
  for (const int rows : {64, 128})
    for (int tokens = 16; tokens <= 256; tokens *= 2) {
      if (tokens > 16 && tokens / 2 >= shape.tokens) break;  // more than half of it empty
      if (tokens * 4 < shape.tokens) continue;
      const int64_t tiles = ceil_div(shape.n, rows) * ceil_div(shape.tokens, tokens);
      for (const int splits : {1, 2, 3, 4, 6, 8}) {
        const int64_t blocks = tiles * splits;
        if (splits > 1 && (blocks > 2 * multiprocessors || shape.k / splits < 256)) continue;
        if (splits < 8 && blocks * 3 < multiprocessors) continue;
        for (const int kilobytes : {72, 104, 208}) {
          const int stages = kilobytes * 1024 / ((rows + tokens) * 128);
          if (stages >= 3 && stages <= 16) result.push_back({rows, tokens, splits, kilobytes << 10});
        }
      }
    }
  return result;
}

/* cuBLASLt's own suggestions, and each of their tiles with other clusters and orders of tiles than it would suggest. */
std::vector<Algorithm> library_algorithms(const Linear &linear, const LinearArguments &a) {
  std::vector<Algorithm> result = linear.heuristics(a, 16);
  const size_t suggested = result.size();
  std::set<CublasLt::Config> known;
  for (const Algorithm &one : result) known.insert(one.config);
  const bool small = a.tokens < 1024;
  const std::vector<int> customs = small ? std::vector<int>{0, 2} : std::vector<int>{4, 5, 7};
  for (size_t i = 0; i < std::min<size_t>(suggested, small ? 8 : 5); i++)
    for (const int cluster : {2, 3, 5})  // 1 x 1, 2 x 1, 1 x 2 blocks
      for (const int custom : customs) {
        Algorithm other = result[i];
        other.config[CublasLt::config_cluster] = cluster;
        other.config[CublasLt::config_custom] = custom;
        if (known.insert(other.config).second) result.push_back(other);
      }
  return result;
}

/* Median microseconds of op(turn), of graphs of `turns`, over at least `least_ms`. */
float time_graph(msgl_device *device, const std::function<void(int)> &op, int turns, float least_ms) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  check(cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal), "capture");
  try {
    for (int turn = 0; turn < turns; turn++) op(turn);
  } catch (...) {
    cudaStreamEndCapture(device->stream, &graph);
    throw;
  }
  check(cudaStreamEndCapture(device->stream, &graph), "capture");
  check(cudaGraphInstantiate(&ready, graph, 0), "graph");
  std::vector<float> times;
  float total = 0.f;
  for (int i = 0; i < 4 || total < least_ms; i++) {
    check(cudaEventRecord(begin, device->stream), "event");
    check(cudaGraphLaunch(ready, device->stream), "graph");
    check(cudaEventRecord(end, device->stream), "event");
    check(cudaEventSynchronize(end), "timing");
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    total += milliseconds;
    if (i > 0) times.push_back(milliseconds);  // the first also loads kernels
  }
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2] * 1000.f / turns;
}

Candidate tune(msgl_device *device, const Shape &shape, int32_t dtype, int32_t out_dtype) {
  Bench bench(device, shape, dtype, out_dtype);
  Linear &linear = *device->linear;
  std::vector<Algorithm> algorithms;
  const LinearArguments first = bench.arguments(0);
  for (const TiledPlan &plan : plans(shape, device->multiprocessors)) algorithms.push_back({true, plan, {}});
  LinearArguments plain = first;
  plain.gated = false;
  // A gated product that our kernel does not compute is its plain one, as chosen, and another op.
  const auto others = first.gated ? linear.heuristics(plain, 1) : library_algorithms(linear, first);
  algorithms.insert(algorithms.end(), others.begin(), others.end());
  std::vector<Candidate> candidates;
  for (const Algorithm &algorithm : algorithms)
    if (LinearChoice choice; linear.accept(algorithm, first, &choice)) candidates.push_back({algorithm, choice, 0.f});

  const bool small = shape.tokens <= 512;
  const int turns = small ? std::max<int>(8, static_cast<int>(bench.weights.size())) : 2;
  const auto measure = [&](Candidate &candidate, float least_ms) {
    const auto op = [&](int turn) {
      LinearArguments a = bench.arguments(turn);
      if (small || turn == 0)
        enqueue_rms_norm(device, bench.normed.get(), bench.x.get(), bench.norm.get(), shape.tokens,
                         static_cast<int>(shape.k), 1e-6f, dtype);
      if (!a.gated || candidate.choice.tiled) return linear.run(a, candidate.choice);
      a.gated = false;
      a.out = bench.gate_up.get();
      linear.run(a, linear.choose(a));
      enqueue_silu_mul(device, bench.out.get(), bench.gate_up.get(), shape.tokens, static_cast<int>(shape.n / 2), dtype);
    };
    candidate.microseconds = time_graph(device, op, turns, least_ms);
  };
  const auto faster = [](const Candidate &a, const Candidate &b) { return a.microseconds < b.microseconds; };
  for (Candidate &candidate : candidates) measure(candidate, small ? 0.f : 12.f);
  std::sort(candidates.begin(), candidates.end(), faster);
  candidates.resize(std::min<size_t>(candidates.size(), finalists));
  // Long enough that a card that lowers its clock under load does so here, too.
  for (Candidate &candidate : candidates) measure(candidate, small ? 3.f : 60.f);
  return *std::min_element(candidates.begin(), candidates.end(), faster);
}

}  // namespace
}  // namespace minisgl

using namespace minisgl;

int32_t msgl_linear_tune(msgl_device *device, char *text, int64_t bytes, int64_t n, int64_t k, int32_t tokens,
                         int32_t dtype, int32_t out_dtype, int32_t variant) {
  return on_device(device, [&] {
    refuse_in_capture(device, "tuning");
    if (bytes <= 0) fail("there is no room for the line");
    text[0] = '\0';
    const bool gated = (variant & MSGL_LINEAR_GATED) != 0, add = (variant & MSGL_LINEAR_ADD) != 0;
    const Shape shape{n, k, tokens,
                      gated ? Form::gated : out_dtype == MSGL_F32 ? Form::f32 : add ? Form::add : Form::plain};
    if (n % 8 != 0 || k % 8 != 0 || tokens <= 8) return;  // neither cuBLASLt nor tiled.cu takes these
    const Candidate best = tune(device, shape, dtype, out_dtype);
    const Tuned entry{shape, best.algorithm};
    device->linear->learn({entry});
    snprintf(text, static_cast<size_t>(bytes), "%s # %.1f us", format(entry).c_str(), best.microseconds);
  });
}

int32_t msgl_linear_algorithms(msgl_device *device, const char *table, int32_t *used) {
  return on_device(device, [&] {
    std::vector<Tuned> entries;
    std::istringstream lines(table);
    for (std::string line; std::getline(lines, line);)
      if (const auto entry = parse_tuned(line)) entries.push_back(*entry);
    device->linear->learn(entries);
    *used = static_cast<int32_t>(entries.size());
  });
}
