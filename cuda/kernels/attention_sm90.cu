/*
 * attention_sm90.cu: FlashInfer's Hopper kernel (the design of FlashAttention-3) on paged K and V, for prefill.
 * Compiled once for each MINISGL_ELEMENT (bf16, f16) and MINISGL_HEAD_DIM, for sm_90a alone.
 */
#include <algorithm>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/scheduler.cuh>

#include "flashinfer_plan.h"
#include "vector.cuh"

namespace minisgl {
namespace {

template <class T>
struct Cutlass;
template <>
struct Cutlass<bf16> {
  using type = cutlass::bfloat16_t;
};
template <>
struct Cutlass<f16> {
  using type = cutlass::half_t;
};

template <class T, int HeadDim>
class Sm90Plan final : public FlashInferPlan {
 public:
  Sm90Plan(const msgl_device *device, const AttentionShape &shape)
      : shape_(shape), int_bytes_(int_bytes(device, shape)), ring_(int_bytes_), ints_(int_bytes_) {}

  void update(msgl_device *device, HostLengths &lengths, bool graph) override {
    if (graph) fail("prefill attention is not captured in graphs");
    const uint32_t sequences = static_cast<uint32_t>(lengths.context.size());
    const uint32_t rows = static_cast<uint32_t>(lengths.query_begin.back());
    check(flashinfer::PrefillSM90Plan<int32_t>(
              nullptr, 0, ints_.get(), ring_.acquire(), int_bytes_, info_, lengths.query_begin.data(),
              lengths.page_begin.data(), lengths.context.data(), rows, sequences, shape_.heads, shape_.kv_heads,
              HeadDim, HeadDim, shape_.page_size, /*causal=*/true, /*enable_cuda_graph=*/false, sizeof(T),
              device->stream),
          "attention plan");
    ring_.release(device->stream);
  }

  void run(msgl_device *device, const AttentionArguments &a) const override {
    const int64_t cache_row = static_cast<int64_t>(a.kv_heads) * HeadDim;
    Parameters p{};
    p.q_ptr = static_cast<Element *>(const_cast<void *>(a.q));
    p.k_ptr = static_cast<Element *>(const_cast<void *>(a.k_cache));
    p.v_ptr = static_cast<Element *>(const_cast<void *>(a.v_cache));
    p.o_ptr = static_cast<Element *>(a.out);
    p.q_stride_n = p.o_stride_n = static_cast<int64_t>(a.heads) * HeadDim;
    p.k_stride_n = p.v_stride_n = cache_row;
    p.q_stride_h = p.k_stride_h = p.v_stride_h = p.o_stride_h = HeadDim;
    p.k_page_stride = p.v_page_stride = a.page_size * cache_row;
    p.nnz_qo = a.tokens;
    p.num_qo_heads = a.heads;
    p.num_kv_heads = a.kv_heads;
    p.group_size = a.heads / a.kv_heads;
    p.page_size = a.page_size;
    p.window_left = -1;
    p.causal = true;
    p.additional_params.sm_scale = a.scale;
    const auto ints = [&](int64_t offset) { return flashinfer::GetPtrFromBaseOffset<int32_t>(ints_.get(), offset); };
    p.qo_tile_indices = ints(info_.qo_tile_indices_offset);
    p.qo_indptr = ints(info_.qo_indptr_offset);
    p.kv_indptr = ints(info_.kv_indptr_offset);
    p.qo_lens = ints(info_.qo_len_offset);
    p.kv_lens = ints(info_.kv_len_offset);
    p.head_indices = ints(info_.head_indices_offset);
    p.work_indptr = ints(info_.work_indptr_offset);
    p.batch_indices = ints(info_.batch_indices_offset);
    p.kv_indices = const_cast<int32_t *>(a.pages);
    if (info_.same_schedule_for_all_heads) return run_scheduled<true>(device, p);
    run_scheduled<false>(device, p);
  }

 private:
  using Element = typename Cutlass<T>::type;
  using Parameters = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;

  template <bool SameSchedule>
  static void run_scheduled(msgl_device *device, Parameters &parameters) {
    check(flashinfer::BatchPrefillWithPagedKVCacheDispatched<HeadDim, HeadDim, flashinfer::MaskMode::kCausal, false,
                                                             SameSchedule, flashinfer::StandardAttention, Parameters>(
              parameters, /*enable_pdl=*/false, device->stream),
          "attention");
  }

  /* Seven words a tile and head; above 4096 tiles all heads share one schedule. */
  static size_t int_bytes(const msgl_device *device, const AttentionShape &s) {
    const int64_t tiles = ceil_div(s.max_tokens, 128) + s.max_sequences;
    const int64_t works = std::max(std::min<int64_t>(tiles, 4096) * s.heads, tiles);
    return static_cast<size_t>(28 * works + 4 * device->multiprocessors + 4096);
  }

  AttentionShape shape_;
  size_t int_bytes_;
  flashinfer::PrefillPlanSM90Info info_;
  PinnedRing ring_;
  DeviceBuffer ints_;
};

}  // namespace

template <class T, int HeadDim>
std::unique_ptr<FlashInferPlan> make_sm90_plan(const msgl_device *device, const AttentionShape &shape) {
  return std::make_unique<Sm90Plan<T, HeadDim>>(device, shape);
}

template std::unique_ptr<FlashInferPlan> make_sm90_plan<MINISGL_ELEMENT, MINISGL_HEAD_DIM>(const msgl_device *,
                                                                                           const AttentionShape &);

}  // namespace minisgl
