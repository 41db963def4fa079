// Attention: the plan, and how a step is cut into tasks for the threads.
#include "attention.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "device.h"

namespace msgl {

/// Floats that only ever grow. Aligned, or vectors would straddle cache lines; not cleared.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { std::free(floats_); }

  float *room(int64_t count) {
    if (count > count_) {
      std::free(std::exchange(floats_, nullptr));
      count_ = 0;
      floats_ = static_cast<float *>(allocate(count * sizeof(float)));
      count_ = count;
    }
    return floats_;
  }

 private:
  float *floats_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace msgl

struct msgl_attention_plan : msgl::Owned {
  using Owned::Owned;
  msgl::AttentionShape shape{};
  int32_t max_sequences = 0, max_tokens = 0;
  // What follows belongs to the device's thread.
  int32_t sequences = 0;
  std::vector<msgl::AttentionTask> tasks;
  msgl::Buffer partials;
};

namespace msgl {
namespace {

/// Rows that share the keys and values of a task.
constexpr int32_t kRows = 48;

/// One call of msgl_attention.
struct Call {
  float *out;
  const float *q;
  const void *k_cache, *v_cache;
  const int32_t *query_begin, *page_begin, *pages, *last_page_length;
  int32_t tokens;
  float scale;
};

struct Sequence {
  int32_t query, queries, context;
  const int32_t *pages;

  Sequence(const Call &call, int32_t index, int32_t page_size)
      : query(call.query_begin[index]),
        queries(call.query_begin[index + 1] - query),
        context((call.page_begin[index + 1] - call.page_begin[index] - 1) * page_size + call.last_page_length[index]),
        pages(call.pages + call.page_begin[index]) {}

  int32_t spans() const { return (context + kSpan - 1) / kSpan; }
};

/// Queries of a task.
int32_t block_of(const AttentionShape &shape) { return std::max(1, kRows / shape.group()); }

/// A sequence of so few queries is one block, and its context is shared out by spans to be merged at the end; the
/// partial results lie in [spans, kv_heads, queries * group, partial].
bool is_split(const AttentionShape &shape, const Sequence &sequence) {
  return sequence.queries > 0 && sequence.queries <= block_of(shape);
}

int64_t span_floats(const AttentionShape &shape, const Sequence &sequence) {
  return int64_t{shape.heads} * sequence.queries * shape.partial();
}

AttentionTask task_at(const AttentionShape &shape, const Call &call, const Sequence &sequence, int32_t first,
                      int32_t queries, int32_t kv_head) {
  const int64_t at = (int64_t{sequence.query + first} * shape.heads + kv_head * shape.group()) * shape.head_dim;
  const int32_t position = sequence.context - sequence.queries + first;
  return {call.q + at, call.out + at, sequence.pages, kv_head, position, queries, -1, nullptr};
}

/// Fills plan.tasks, the longest first, and makes room for the partial results of split sequences.
void schedule(msgl_attention_plan &plan, const AttentionShape &shape, const Call &call) {
  plan.tasks.clear();
  int64_t room = 0;
  const int32_t block = block_of(shape);
  for (int32_t index = 0; index < plan.sequences; ++index) {
    const Sequence sequence(call, index, shape.page_size);
    if (sequence.context < sequence.queries) throw error("attention: more queries than context in sequence %d", index);
    if (is_split(shape, sequence)) {
      room += sequence.spans() * span_floats(shape, sequence);
      continue;
    }
    for (int32_t first = (sequence.queries - 1) / block * block; first >= 0; first -= block) {
      const int32_t queries = std::min(block, sequence.queries - first);
      for (int32_t head = 0; head < shape.kv_heads && queries > 0; ++head) {
        plan.tasks.push_back(task_at(shape, call, sequence, first, queries, head));
      }
    }
  }
  float *partials = plan.partials.room(room);
  for (int32_t index = 0; index < plan.sequences; ++index) {
    const Sequence sequence(call, index, shape.page_size);
    if (!is_split(shape, sequence)) continue;
    const int64_t head_floats = span_floats(shape, sequence) / shape.kv_heads;
    for (int32_t span = 0; span < sequence.spans(); ++span) {
      for (int32_t head = 0; head < shape.kv_heads; ++head, partials += head_floats) {
        AttentionTask &task = plan.tasks.emplace_back(task_at(shape, call, sequence, 0, sequence.queries, head));
        task.span = span;
        task.partials = partials;
      }
    }
  }
}

void merge_split(msgl_attention_plan &plan, const AttentionShape &shape, const Call &call) {
  const auto merge = MSGL_PICK(merge_spans);
  std::vector<float> total(shape.partial());
  const float *partials = plan.partials.room(0);
  for (int32_t index = 0; index < plan.sequences; ++index) {
    const Sequence sequence(call, index, shape.page_size);
    if (!is_split(shape, sequence)) continue;
    const int64_t stride = span_floats(shape, sequence);
    for (int32_t i = 0; i < sequence.queries; ++i) {
      for (int32_t head = 0; head < shape.heads; ++head) {
        const int32_t group = shape.group();
        const int64_t row = (int64_t{head / group} * sequence.queries + i) * group + head % group;
        merge(shape, call.out + (int64_t{sequence.query + i} * shape.heads + head) * shape.head_dim,
              partials + row * shape.partial(), sequence.spans(), stride, total.data());
      }
    }
    partials += sequence.spans() * stride;
  }
}

void run_attention(msgl_device &device, msgl_attention_plan &plan, const Call &call) {
  AttentionShape shape = plan.shape;
  shape.k_cache = call.k_cache;
  shape.v_cache = call.v_cache;
  shape.scale = call.scale;
  if (call.query_begin[plan.sequences] > call.tokens) {
    throw error("attention: %d tokens for a plan of %d", call.tokens, call.query_begin[plan.sequences]);
  }
  schedule(plan, shape, call);
  const auto kernel = MSGL_PICK(attend);
  device.pool.run(plan.tasks.size(), [&](int64_t index) {
    thread_local Buffer scratch;
    const AttentionTask &task = plan.tasks[index];
    kernel(shape, task, scratch.room(shape.scratch(task.queries * shape.group())));
  });
  merge_split(plan, shape, call);
}

}  // namespace
}  // namespace msgl

using namespace msgl;

MSGL_EXPORT int32_t msgl_attention_plan_create(msgl_device *device, msgl_attention_plan **plan, int32_t heads,
                                               int32_t kv_heads, int32_t head_dim, int32_t page_size,
                                               int32_t max_sequences, int32_t max_tokens, int32_t dtype,
                                               int32_t cache_dtype, int32_t prefill, int32_t decode) {
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0)
    return fail("attention: %d heads, %d kv heads", heads, kv_heads);
  if (head_dim < 1 || head_dim > 1024) return fail("attention: head_dim %d is not in 1 .. 1024", head_dim);
  if (page_size < 1) return fail("attention: page size %d", page_size);
  if (dtype != MSGL_F32) return fail("attention: activations on the CPU are F32, not dtype %d", dtype);
  if (cache_dtype < MSGL_F32 || cache_dtype > MSGL_BF16) return fail("attention: a cache of dtype %d", cache_dtype);
  if (prefill != MSGL_ATTENTION_AUTO || decode != MSGL_ATTENTION_AUTO) {
    return fail("attention: the CPU has one backend; choose auto");
  }
  return guard([&] {
    auto created = std::make_unique<msgl_attention_plan>(*device);
    created->shape = {heads, kv_heads, head_dim, page_size, cache_dtype, 1.0f, nullptr, nullptr};
    created->max_sequences = max_sequences;
    created->max_tokens = max_tokens;
    *plan = device->adopt(std::move(created));
    return 0;
  });
}

MSGL_EXPORT int32_t msgl_attention_plan_destroy(msgl_device *device, msgl_attention_plan *plan) {
  device->release(plan);
  return 0;
}

MSGL_EXPORT int32_t msgl_attention_plan_update(msgl_device *device, msgl_attention_plan *plan,
                                               const int32_t *query_lengths, const int32_t *context_lengths,
                                               int32_t sequences, int32_t decode_sequences, int32_t graph) {
  if (sequences < 0 || sequences > plan->max_sequences) {
    return fail("attention: %d sequences, the plan is for %d", sequences, plan->max_sequences);
  }
  int64_t tokens = 0;
  for (int32_t i = 0; i < sequences; ++i) tokens += query_lengths[i];
  if (tokens > plan->max_tokens) {
    return fail("attention: %lld tokens, the plan is for %d", static_cast<long long>(tokens), plan->max_tokens);
  }
  // Not an op of a graph: a graph that is captured now will be launched with the schedule of that time.
  device->push(Closure([=](msgl_device &) { plan->sequences = sequences; }));
  return 0;
}

MSGL_EXPORT int32_t msgl_attention(msgl_device *device, void *out, const void *q, const void *k_cache,
                                   const void *v_cache, msgl_attention_plan *plan, const int32_t *query_begin,
                                   const int32_t *page_begin, const int32_t *pages, const int32_t *last_page_length,
                                   int32_t tokens, float scale) {
  if (tokens > plan->max_tokens) return fail("attention: %d tokens, the plan is for %d", tokens, plan->max_tokens);
  const Call call{static_cast<float *>(out),
                  static_cast<const float *>(q),
                  k_cache,
                  v_cache,
                  query_begin,
                  page_begin,
                  pages,
                  last_page_length,
                  tokens,
                  scale};
  return enqueue(device, [=](msgl_device &target) { run_attention(target, *plan, call); });
}
