/*
 * attention_fa2.cu: FlashInfer's FlashAttention-2 kernel on paged K and V, for prefill and, with tensor cores, for decode.
 * Compiled once for each MINISGL_ELEMENT (bf16, f16) and MINISGL_HEAD_DIM.
 */
#include <algorithm>

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>

#include "flashinfer_plan.h"
#include "vector.cuh"

namespace minisgl {
namespace {

using flashinfer::GetPtrFromBaseOffset;

template <class T, int HeadDim>
class Fa2Plan final : public FlashInferPlan {
 public:
  Fa2Plan(const msgl_device *device, const AttentionShape &shape)
      : shape_(shape), float_bytes_(float_bytes(device, shape)), int_bytes_(int_bytes(device, shape)),
        ring_(int_bytes_ + (shape.max_sequences + 1) * sizeof(int32_t)), floats_(float_bytes_), ints_(int_bytes_),
        query_begin_((shape.max_sequences + 1) * sizeof(int32_t)) {}

  void update(msgl_device *device, HostLengths &lengths, bool graph) override {
    char *pinned = static_cast<char *>(ring_.acquire());
    const uint32_t sequences = static_cast<uint32_t>(lengths.context.size());
    const uint32_t rows = static_cast<uint32_t>(lengths.query_begin.back());
    check(flashinfer::PrefillPlan<int32_t>(
              floats_.get(), float_bytes_, ints_.get(), pinned, int_bytes_, info_, lengths.query_begin.data(),
              lengths.page_begin.data(), rows, sequences, shape_.heads, shape_.kv_heads, HeadDim, HeadDim,
              shape_.page_size, graph, sizeof(T), /*window_left=*/-1, /*fixed_split_size=*/-1,
              /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, /*uniform_q_len=*/graph ? 1 : 0, device->stream,
              sizeof(T)),
          "attention plan");
    const size_t bytes = (sequences + 1) * sizeof(int32_t);
    std::copy_n(lengths.query_begin.data(), sequences + 1, reinterpret_cast<int32_t *>(pinned + int_bytes_));
    check(cudaMemcpyAsync(query_begin_.get(), pinned + int_bytes_, bytes, cudaMemcpyHostToDevice, device->stream),
          "attention plan");
    ring_.release(device->stream);
  }

  void run(msgl_device *device, const AttentionArguments &a) const override {
    switch (info_.cta_tile_q) {
      case 16:
        return run_tile<16>(device, a);
      case 64:
        return run_tile<64>(device, a);
      case 128:
        return run_tile<128>(device, a);
      default:
        fail("attention: no kernel with tiles of %lld queries", static_cast<long long>(info_.cta_tile_q));
    }
  }

 private:
  using Parameters = flashinfer::BatchPrefillPagedParams<T, T, T, int32_t>;
  using Variant = flashinfer::DefaultAttention<false, false, false, false>;

  template <uint32_t Tile>
  void run_tile(msgl_device *device, const AttentionArguments &a) const {
    T *k = static_cast<T *>(const_cast<void *>(a.k_cache)), *v = static_cast<T *>(const_cast<void *>(a.v_cache));
    flashinfer::paged_kv_t<T, int32_t> cache(a.kv_heads, a.page_size, HeadDim, a.sequences,
                                             flashinfer::QKVLayout::kNHD, k, v, const_cast<int32_t *>(a.pages),
                                             const_cast<int32_t *>(a.page_begin),
                                             const_cast<int32_t *>(a.last_page_length));
    Parameters p(static_cast<T *>(const_cast<void *>(a.q)), cache, nullptr, query_begin_.get<int32_t>(), nullptr,
                 nullptr, static_cast<T *>(a.out), nullptr, nullptr, a.heads, a.heads * HeadDim, HeadDim, -1, 0.f,
                 a.scale, 1.f, 1e4f);
    const auto ints = [&](int64_t offset) { return GetPtrFromBaseOffset<int32_t>(ints_.get(), offset); };
    p.request_indices = ints(info_.request_indices_offset);
    p.qo_tile_indices = ints(info_.qo_tile_indices_offset);
    p.kv_tile_indices = ints(info_.kv_tile_indices_offset);
    p.o_indptr = ints(info_.o_indptr_offset);
    p.kv_chunk_size_ptr = ints(info_.kv_chunk_size_ptr_offset);
    p.padded_batch_size = info_.padded_batch_size;
    p.max_total_num_rows = info_.total_num_rows;
    T *partial_out = nullptr;
    float *partial_sums = nullptr;
    if (info_.split_kv) {
      p.merge_indptr = ints(info_.merge_indptr_offset);
      partial_out = GetPtrFromBaseOffset<T>(floats_.get(), info_.v_offset);
      partial_sums = GetPtrFromBaseOffset<float>(floats_.get(), info_.s_offset);
    }
    if (info_.enable_cuda_graph) {
      p.block_valid_mask = GetPtrFromBaseOffset<bool>(ints_.get(), info_.block_valid_mask_offset);
      p.total_num_rows = GetPtrFromBaseOffset<uint32_t>(ints_.get(), info_.total_num_rows_offset);
    }
    check(flashinfer::BatchPrefillWithPagedKVCacheDispatched<true, Tile, HeadDim, HeadDim,
                                                             flashinfer::PosEncodingMode::kNone, false,
                                                             flashinfer::MaskMode::kCausal, Variant, Parameters>(
              p, partial_out, partial_sums, /*enable_pdl=*/false, device->stream),
          "attention");
  }

  static int64_t tiles(const AttentionShape &s, int tile) {
    const int64_t group = s.heads / s.kv_heads;
    return ceil_div(s.max_tokens * group, tile) + s.max_sequences;
  }
  /* Partial results exist while fewer tiles than two a multiprocessor are split, or, in graphs, for every sequence. */
  static size_t float_bytes(const msgl_device *device, const AttentionShape &s) {
    const int64_t group = s.heads / s.kv_heads, split = 2 * device->multiprocessors / s.kv_heads + 1;
    const int64_t decode_tile = group <= 16 ? 16 : group <= 64 ? 64 : 128;
    int64_t rows = ceil_div(split * 128, group);
    if (s.max_tokens == s.max_sequences)
      rows = std::max(rows, ceil_div(s.max_sequences * ceil_div(group, decode_tile) * decode_tile, group));
    return static_cast<size_t>(s.heads * rows * (HeadDim + 1)) * sizeof(float) + 1024;
  }
  static size_t int_bytes(const msgl_device *device, const AttentionShape &s) {
    const int64_t padded = tiles(s, 16) + 2 * device->multiprocessors;
    return static_cast<size_t>(13 * padded + 4 * (s.max_sequences + s.max_tokens) + 4096);
  }

  AttentionShape shape_;
  size_t float_bytes_, int_bytes_;
  flashinfer::PrefillPlanInfo info_;
  PinnedRing ring_;
  DeviceBuffer floats_, ints_, query_begin_;
};

}  // namespace

template <class T, int HeadDim>
std::unique_ptr<FlashInferPlan> make_fa2_plan(const msgl_device *device, const AttentionShape &shape) {
  return std::make_unique<Fa2Plan<T, HeadDim>>(device, shape);
}

template std::unique_ptr<FlashInferPlan> make_fa2_plan<MINISGL_ELEMENT, MINISGL_HEAD_DIM>(const msgl_device *,
                                                                                          const AttentionShape &);

}  // namespace minisgl
