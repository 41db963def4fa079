/* attention.cu: plans, and the choice among the attention kernels; attention.h lists them. */
#include "attention.h"
#include "chain.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace minisgl {

PinnedRing::PinnedRing(size_t bytes) : bytes_((bytes + 255) / 256 * 256) {
  check(cudaMallocHost(&memory_, bytes_ * slots), "pinned host memory");
  for (cudaEvent_t &event : events_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
}

PinnedRing::~PinnedRing() {
  for (cudaEvent_t event : events_)
    if (event != nullptr) {
      cudaEventSynchronize(event);
      cudaEventDestroy(event);
    }
  cudaFreeHost(memory_);
}

void *PinnedRing::acquire() {
  check(cudaEventSynchronize(events_[next_]), "the device");
  return memory_ + next_ * bytes_;
}

void PinnedRing::release(cudaStream_t stream) {
  check(cudaEventRecord(events_[next_], stream), "cudaEventRecord");
  next_ = (next_ + 1) % slots;
}

namespace {

/* FlashInfer's kernels exist for three head_dims and two dtypes; null for any other. */
template <template <class, int> class Make>
std::unique_ptr<FlashInferPlan> make(const msgl_device *device, const AttentionShape &shape, int32_t dtype) {
  const auto of_type = [&](auto *type) -> std::unique_ptr<FlashInferPlan> {
    using T = std::remove_pointer_t<decltype(type)>;
    switch (shape.head_dim) {
      case 64:
        return Make<T, 64>()(device, shape);
      case 128:
        return Make<T, 128>()(device, shape);
      case 256:
        return Make<T, 256>()(device, shape);
      default:
        return nullptr;
    }
  };
  return dtype == MSGL_BF16 ? of_type(static_cast<__nv_bfloat16 *>(nullptr)) : of_type(static_cast<__half *>(nullptr));
}

template <class T, int HeadDim>
struct Fa2 {
  auto operator()(const msgl_device *device, const AttentionShape &shape) {
    return make_fa2_plan<T, HeadDim>(device, shape);
  }
};

template <class T, int HeadDim>
struct Sm90 {
  auto operator()(const msgl_device *device, const AttentionShape &shape) {
    return make_sm90_plan<T, HeadDim>(device, shape);
  }
};

}  // namespace
}  // namespace minisgl

using namespace minisgl;

struct msgl_attention_plan : Owned {
  AttentionShape shape{};
  int32_t dtype = 0;
  std::unique_ptr<DecodePlan> decode;                      // decode rows are its work,
  std::unique_ptr<FlashInferPlan> flashinfer_decode;       // or this one's,
  std::unique_ptr<FlashInferPlan> prefill;                 // prefill rows this one's;
  int32_t sequences = 0, decode_sequences = 0;             // where there is none, attention_simple.cu's
  HostLengths lengths;

  /* Whether decode rows go to our kernel. Of two that could, ours was measured to be faster up to groups of 8
   * (BENCHMARKS.md); a group of 16 fills FlashInfer's tiles of 16 rows. */
  bool decodes(const msgl_device *device, int32_t backend) const {
    if (backend == MSGL_ATTENTION_FI || !DecodePlan::supports(device, shape.heads, shape.kv_heads, shape.head_dim))
      return false;
    return backend == MSGL_ATTENTION_FA || shape.heads / shape.kv_heads <= 8;
  }

  bool has_kernels() const { return shape.head_dim == 64 || shape.head_dim == 128 || shape.head_dim == 256; }
};

int32_t msgl_attention_plan_create(msgl_device *device, msgl_attention_plan **plan, int32_t heads, int32_t kv_heads,
                                   int32_t head_dim, int32_t page_size, int32_t max_sequences, int32_t max_tokens,
                                   int32_t dtype, int32_t cache_dtype, int32_t prefill, int32_t decode) {
  return on_device(device, [&] {
    if (dtype != cache_dtype) fail("attention: the cache must have the activations' dtype");
    if (dtype != MSGL_BF16 && dtype != MSGL_F16) fail("attention computes in bfloat16 or float16, not in dtype %d", dtype);
    if (kv_heads < 1 || heads % kv_heads != 0) fail("%d query heads do not divide among %d KV heads", heads, kv_heads);
    const bool hopper = device->capability == 90;
    if (prefill == MSGL_ATTENTION_FA && !hopper) fail("--attn fa needs a Hopper GPU for prefill; use fi");
    auto made = std::make_unique<msgl_attention_plan>();
    made->shape = {heads, kv_heads, head_dim, page_size, max_sequences, max_tokens};
    made->dtype = dtype;
    if (made->has_kernels()) {
      const AttentionShape rows{heads, kv_heads, head_dim, page_size, max_sequences, max_sequences};
      if (made->decodes(device, decode))
        made->decode = std::make_unique<DecodePlan>(device, made->shape, dtype);
      else
        made->flashinfer_decode = make<Fa2>(device, rows, dtype);
      made->prefill = hopper && prefill != MSGL_ATTENTION_FI ? make<Sm90>(device, made->shape, dtype)
                                                             : make<Fa2>(device, made->shape, dtype);
    }
    *plan = device->adopt(std::move(made));
  });
}

int32_t msgl_attention_plan_destroy(msgl_device *device, msgl_attention_plan *plan) {
  return on_device(device, [&] {
    check(cudaStreamSynchronize(device->stream), "the device");
    device->release(plan);
  });
}

int32_t msgl_attention_plan_update(msgl_device *device, msgl_attention_plan *plan, const int32_t *query_lengths,
                                   const int32_t *context_lengths, int32_t sequences, int32_t decode_sequences,
                                   int32_t graph) {
  return on_device(device, [&] {
    if (sequences > plan->shape.max_sequences) fail("%d sequences are more than the plan's %d", sequences,
                                                    plan->shape.max_sequences);
    int64_t tokens = 0;
    for (int i = 0; i < sequences; i++) tokens += query_lengths[i];
    if (tokens > plan->shape.max_tokens) fail("%lld tokens are more than the plan's %d", static_cast<long long>(tokens),
                                              plan->shape.max_tokens);
    if (graph && decode_sequences != sequences) fail("graphs hold decode rows only");
    plan->sequences = sequences;
    plan->decode_sequences = decode_sequences;
    if (!plan->has_kernels()) return;

    // Prefix sums for FlashInfer: rows from the launch's first row on, pages from the batch's first page on.
    HostLengths &lengths = plan->lengths;
    const auto sum = [&](int begin, int end) {
      lengths.query_begin.assign(1, 0);
      lengths.context.assign(context_lengths + begin, context_lengths + end);
      int32_t pages = 0;
      for (int i = 0; i < begin; i++) pages += ceil_div(context_lengths[i], plan->shape.page_size);
      lengths.page_begin.assign(1, pages);
      for (int i = begin; i < end; i++) {
        lengths.query_begin.push_back(lengths.query_begin.back() + query_lengths[i]);
        lengths.page_begin.push_back(pages += ceil_div(context_lengths[i], plan->shape.page_size));
      }
    };
    if (decode_sequences > 0) {
      if (plan->decode != nullptr) {
        plan->decode->update(device, context_lengths, decode_sequences);
      } else {
        sum(0, decode_sequences);
        plan->flashinfer_decode->update(device, lengths, graph != 0);
      }
    }
    if (sequences > decode_sequences) {
      sum(decode_sequences, sequences);
      plan->prefill->update(device, lengths, false);
    }
  });
}

int32_t msgl_attention(msgl_device *device, void *out, const void *q, const void *k_cache, const void *v_cache,
                       msgl_attention_plan *plan, const int32_t *query_begin, const int32_t *page_begin,
                       const int32_t *pages, const int32_t *last_page_length, int32_t tokens, float scale) {
  return on_device(device, [&] {
    const AttentionShape &s = plan->shape;
    AttentionArguments arguments{out,      q,      k_cache,    v_cache,    query_begin, page_begin, pages,
                                 last_page_length, plan->sequences, tokens, s.heads,    s.kv_heads, s.head_dim,
                                 s.page_size,      scale};
    if (!plan->has_kernels()) return enqueue_simple_attention(device, arguments, plan->dtype);
    const int rows = plan->decode_sequences;
    const bool stored = device->stored_cache == k_cache;
    if (rows > 0) {
      arguments.sequences = arguments.tokens = rows;
      if (plan->decode != nullptr)
        plan->decode->run(device, arguments, stored);
      else
        plan->flashinfer_decode->run(device, arguments);
    }
    if (plan->sequences > rows) {
      const int64_t skipped = static_cast<int64_t>(rows) * s.heads * s.head_dim * dtype_bytes(plan->dtype);
      arguments.out = static_cast<char *>(out) + skipped;
      arguments.q = static_cast<const char *>(q) + skipped;
      arguments.query_begin += rows;
      arguments.page_begin += rows;
      arguments.last_page_length += rows;
      arguments.sequences = plan->sequences - rows;
      arguments.tokens = tokens - rows;
      plan->prefill->run(device, arguments);
    }
    chain_continue(device, stored && plan->decode != nullptr && plan->sequences == rows);
  });
}
