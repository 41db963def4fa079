// A device that computes nothing: `minisgl bench host` measures the host with it. Memory is real and copies happen in
// the call, tokens are a cheap function of (slot, position), every other op returns at once. With
// MINISGL_NULL_STEP_US=n, what stands between two event records takes n microseconds, as on a device that is busy.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unordered_map>

#include <sys/mman.h>

#include "minisgl.h"

#define MSGL_EXPORT extern "C" __attribute__((visibility("default")))

struct msgl_device {
  std::unordered_map<void *, int64_t> memory;
  std::chrono::microseconds step{0};
  std::chrono::steady_clock::time_point idle_at;
};

struct msgl_event {
  std::chrono::steady_clock::time_point reached_at;
};

struct msgl_weight {
  int64_t bytes;
};

namespace {

thread_local char last_error[256];
// What handles of things that hold no state point to.
char nothing;

int32_t fail(const char *text) {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  return 1;
}

template <class T>
int32_t give_nothing(T **handle) {
  *handle = reinterpret_cast<T *>(&nothing);
  return 0;
}

// Mapped and not reserved: what is never touched takes no memory. Fresh mappings are zero.
int32_t allocate(msgl_device *device, void **pointer, int64_t bytes) {
  *pointer = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*pointer == MAP_FAILED) return fail("out of memory");
  device->memory.emplace(*pointer, bytes);
  return 0;
}

int32_t give_back(msgl_device *device, void *pointer) {
  const auto found = device->memory.find(pointer);
  if (found == device->memory.end()) return 0;
  munmap(found->first, found->second);
  device->memory.erase(found);
  return 0;
}

}  // namespace

MSGL_EXPORT const char *msgl_last_error(void) { return last_error; }

MSGL_EXPORT int32_t msgl_libraries(char *text, int64_t bytes) {
  if (bytes > 0) *text = 0;
  return 0;
}

MSGL_EXPORT int32_t msgl_device_count(int32_t *count) {
  *count = 1;
  return 0;
}

MSGL_EXPORT int32_t msgl_device_open(msgl_device **device, int32_t index, int32_t threads, int32_t flags) {
  *device = new msgl_device;
  if (const char *step = std::getenv("MINISGL_NULL_STEP_US")) {
    (*device)->step = std::chrono::microseconds(std::atoll(step));
  }
  return 0;
}

MSGL_EXPORT int32_t msgl_device_close(msgl_device *device) {
  for (const auto &[pointer, bytes] : device->memory) munmap(pointer, bytes);
  delete device;
  return 0;
}

MSGL_EXPORT int32_t msgl_device_properties(msgl_device *device, msgl_properties *properties) {
  *properties = {};
  std::strcpy(properties->name, "null");
  std::strcpy(properties->library, "null (computes nothing)");
  properties->total_memory = properties->free_memory = int64_t{64} << 30;
  properties->compute_units = 1;
  properties->dtypes = 1 << MSGL_F32 | 1 << MSGL_F16 | 1 << MSGL_BF16;
  properties->weight_dtypes =
      properties->dtypes | 1 << MSGL_Q8_0 | 1 << MSGL_Q4_0 | 1 << MSGL_Q4_1 | 1 << MSGL_Q4_K | 1 << MSGL_Q6_K;
  return 0;
}

MSGL_EXPORT int32_t msgl_alloc(msgl_device *device, void **pointer, int64_t bytes) {
  return allocate(device, pointer, bytes);
}

MSGL_EXPORT int32_t msgl_free(msgl_device *device, void *pointer) { return give_back(device, pointer); }

MSGL_EXPORT int32_t msgl_host_alloc(msgl_device *device, void **pointer, int64_t bytes) {
  return allocate(device, pointer, bytes);
}

MSGL_EXPORT int32_t msgl_host_free(msgl_device *device, void *pointer) { return give_back(device, pointer); }

MSGL_EXPORT int32_t msgl_copy(msgl_device *device, void *destination, const void *source, int64_t bytes) {
  std::memmove(destination, source, bytes);
  return 0;
}

// Memory that nobody reads stays untouched: a KV pool of any size costs nothing.
MSGL_EXPORT int32_t msgl_fill(msgl_device *device, void *destination, int32_t value, int64_t bytes) { return 0; }

MSGL_EXPORT int32_t msgl_event_create(msgl_device *device, msgl_event **event) {
  *event = new msgl_event{};
  return 0;
}

MSGL_EXPORT int32_t msgl_event_destroy(msgl_device *device, msgl_event *event) {
  delete event;
  return 0;
}

MSGL_EXPORT int32_t msgl_event_record(msgl_device *device, msgl_event *event) {
  if (device->step.count() == 0) return 0;
  device->idle_at = std::max(device->idle_at, std::chrono::steady_clock::now()) + device->step;
  event->reached_at = device->idle_at;
  return 0;
}

MSGL_EXPORT int32_t msgl_event_query(msgl_event *event, int32_t *done) {
  *done = std::chrono::steady_clock::now() >= event->reached_at;
  return 0;
}

MSGL_EXPORT int32_t msgl_event_synchronize(msgl_event *event) {
  if (event->reached_at.time_since_epoch().count() != 0) std::this_thread::sleep_until(event->reached_at);
  return 0;
}

MSGL_EXPORT int32_t msgl_event_elapsed(const msgl_event *begin, const msgl_event *end, float *milliseconds) {
  *milliseconds = 0;
  return 0;
}

MSGL_EXPORT int32_t msgl_capture_end(msgl_device *device, msgl_graph **graph) { return give_nothing(graph); }

MSGL_EXPORT int32_t msgl_file_open(msgl_file **file, const char *path) { return give_nothing(file); }

MSGL_EXPORT int32_t msgl_weight_create(msgl_device *device, msgl_weight **weight, const int64_t *part_rows,
                                       const int32_t *part_dtypes, int32_t parts, int64_t k) {
  int64_t rows = 0;
  for (int32_t i = 0; i < parts; ++i) rows += part_rows[i];
  *weight = new msgl_weight{rows * k * 2};
  return 0;
}

MSGL_EXPORT int32_t msgl_weight_destroy(msgl_device *device, msgl_weight *weight) {
  delete weight;
  return 0;
}

MSGL_EXPORT int32_t msgl_weight_bytes(const msgl_weight *weight, int64_t *bytes) {
  *bytes = weight->bytes;
  return 0;
}

MSGL_EXPORT int32_t msgl_load_wait(msgl_device *device, int64_t *bytes, int32_t *done, int32_t timeout_ms) {
  *bytes = 0;
  *done = 1;
  return 0;
}

MSGL_EXPORT int32_t msgl_attention_plan_create(msgl_device *device, msgl_attention_plan **plan, int32_t heads,
                                               int32_t kv_heads, int32_t head_dim, int32_t page_size,
                                               int32_t max_sequences, int32_t max_tokens, int32_t dtype,
                                               int32_t cache_dtype, int32_t prefill, int32_t decode) {
  return give_nothing(plan);
}

MSGL_EXPORT int32_t msgl_sample(msgl_device *device, int32_t *tokens, int32_t *token_table, const float *logits,
                                const msgl_sampling *sampling, int32_t count, int32_t vocabulary, int64_t token_stride,
                                int32_t flags) {
  for (int32_t i = 0; i < count; ++i) {
    const uint32_t hash = (sampling[i].slot * 0x9E3779B9u + sampling[i].position) * 0x85EBCA6Bu;
    tokens[i] = static_cast<int32_t>((hash ^ hash >> 15) % static_cast<uint32_t>(vocabulary));
  }
  return 0;
}

/// Every token is as probable as any other.
MSGL_EXPORT int32_t msgl_logprobs(msgl_device *device, float *logprobs, int32_t *top_ids, float *top_logprobs,
                                  const float *logits, const int32_t *tokens, const msgl_logprob_row *rows,
                                  int32_t count, int32_t vocabulary, int32_t top) {
  const float logprob = -std::log(static_cast<float>(vocabulary));
  std::fill_n(logprobs, count, logprob);
  for (int32_t i = 0; i < count * top; ++i) top_ids[i] = i % top, top_logprobs[i] = logprob;
  return 0;
}

// Ops that do nothing. Their arguments are named in minisgl.h.
#define MSGL_DOES_NOTHING(name, ...) \
  MSGL_EXPORT int32_t name(__VA_ARGS__) { return 0; }

MSGL_DOES_NOTHING(msgl_device_synchronize, msgl_device *)
MSGL_DOES_NOTHING(msgl_random, msgl_device *, void *, int64_t, int32_t, uint64_t, float)
MSGL_DOES_NOTHING(msgl_capture_begin, msgl_device *)
MSGL_DOES_NOTHING(msgl_graph_launch, msgl_device *, msgl_graph *)
MSGL_DOES_NOTHING(msgl_graph_destroy, msgl_device *, msgl_graph *)
MSGL_DOES_NOTHING(msgl_range_push, const char *)
MSGL_DOES_NOTHING(msgl_range_pop, void)
MSGL_DOES_NOTHING(msgl_file_close, msgl_file *)
MSGL_DOES_NOTHING(msgl_weight_load, msgl_device *, msgl_weight *, msgl_file *, int64_t, int64_t, int64_t, int64_t,
                  int32_t)
MSGL_DOES_NOTHING(msgl_weight_random, msgl_device *, msgl_weight *, uint64_t, float)
MSGL_DOES_NOTHING(msgl_load, msgl_device *, void *, int32_t, msgl_file *, int64_t, int64_t, int32_t)
MSGL_DOES_NOTHING(msgl_table_write, msgl_device *, int32_t *, const int32_t *, const int32_t *, int32_t, int64_t)
MSGL_DOES_NOTHING(msgl_expand, msgl_device *, int32_t *, int32_t *, int32_t *, int32_t *, int32_t *, int32_t *,
                  int32_t *, int32_t *, const int32_t *, const int32_t *, const int32_t *, int32_t, int32_t, int64_t,
                  int64_t, int32_t)
MSGL_DOES_NOTHING(msgl_embedding, msgl_device *, void *, const int32_t *, const msgl_weight *, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_linear, msgl_device *, void *, const void *, const msgl_weight *, const void *, int32_t, int32_t,
                  int32_t)
MSGL_DOES_NOTHING(msgl_linear_add, msgl_device *, void *, void *, const void *, const msgl_weight *, const void *,
                  int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_norm_linear, msgl_device *, void *, void *, const void *, const void *, const msgl_weight *,
                  const void *, int32_t, float, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_norm_gated_linear, msgl_device *, void *, void *, void *, const void *, const void *,
                  const msgl_weight *, int32_t, float, int32_t)
MSGL_DOES_NOTHING(msgl_rms_norm, msgl_device *, void *, const void *, const void *, int32_t, int32_t, float, int32_t)
MSGL_DOES_NOTHING(msgl_add_rms_norm, msgl_device *, void *, void *, const void *, const void *, int32_t, int32_t, float,
                  int32_t)
MSGL_DOES_NOTHING(msgl_silu_mul, msgl_device *, void *, const void *, int32_t, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_gather, msgl_device *, void *, const void *, const int32_t *, int32_t, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_rotary_store, msgl_device *, void *, void *, void *, const void *, const int32_t *,
                  const int32_t *, const float *, const void *, const void *, int32_t, int32_t, int32_t, int32_t,
                  int32_t, float, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_attention_plan_destroy, msgl_device *, msgl_attention_plan *)
MSGL_DOES_NOTHING(msgl_attention_plan_update, msgl_device *, msgl_attention_plan *, const int32_t *, const int32_t *,
                  int32_t, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_attention, msgl_device *, void *, const void *, const void *, const void *,
                  msgl_attention_plan *, const int32_t *, const int32_t *, const int32_t *, const int32_t *, int32_t,
                  float)
MSGL_DOES_NOTHING(msgl_logit_bias, msgl_device *, float *, const int32_t *, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_penalize, msgl_device *, float *, int32_t *, const int32_t *, const msgl_penalties *, int32_t,
                  int32_t, int64_t)
MSGL_DOES_NOTHING(msgl_linear_tune, msgl_device *, char *, int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, int32_t)
MSGL_DOES_NOTHING(msgl_linear_algorithms, msgl_device *, const char *, int32_t *)
