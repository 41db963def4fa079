/*
 * attention.h: the kernels behind msgl_attention, and how attention.cu chooses among them.
 *
 *   decode rows    attention_decode.cu    ours: reads K and V at memory speed; groups of up to 16 query heads a KV head
 *   prefill rows   attention_sm90.cu      FlashInfer's Hopper kernel (the design of FlashAttention-3)
 *   either         attention_fa2.cu       FlashInfer's FlashAttention-2, Ampere and later
 *   either         attention_simple.cu    ours: any head_dim, for small models and tests; slow
 *
 * A batch's decode rows come first and are one launch, its prefill rows are another.
 */
#ifndef MINISGL_ATTENTION_H
#define MINISGL_ATTENTION_H

#include <cstdint>

#include "flashinfer_plan.h"

namespace minisgl {

/* ---- decode: attention_decode.cu ---- */

/*
 * Splits the KV tiles of all sequences and KV heads evenly over a fixed grid:
 *   sequence 0: head 0: tile tile tile | head 1: tile tile tile | ...    sequence 1: ...
 *               '-- block 0 --'  '-- block 1 --' ...
 * A head's tiles that lie in several blocks are merged by the last of them.
 */
class DecodePlan {
 public:
  DecodePlan(const msgl_device *device, const AttentionShape &shape, int32_t dtype);
  /* Whether there is a kernel for the shape, and the device has the shared memory for it. */
  static bool supports(const msgl_device *device, int heads, int kv_heads, int head_dim);
  void update(msgl_device *device, const int32_t *context_lengths, int sequences);
  /* stored: the op before was msgl_rotary_store into the same cache, so that K and V of earlier tokens lie there already
   * when this kernel starts, and may be read before the wait (chain.h). */
  void run(msgl_device *device, const AttentionArguments &arguments, bool stored);

 private:
  static constexpr int most_blocks = 4;  // a multiprocessor
  int grid(int sequences) const;         // blocks for so many sequences, all resident at once

  AttentionShape shape_;
  int32_t dtype_;
  int multiprocessors_, blocks_ = 0;  // blocks that fit on a multiprocessor
  PinnedRing ring_;
  DeviceBuffer starts_, partials_;
  std::vector<char> uploaded_;        // what starts_ holds
  std::vector<const void *> read_;    // K caches read since the last copy to starts_
};

/* ---- any shape: attention_simple.cu ---- */

void enqueue_simple_attention(msgl_device *device, const AttentionArguments &arguments, int32_t dtype);

}  // namespace minisgl

#endif
