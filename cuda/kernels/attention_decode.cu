/*
 * attention_decode.cu: attention of one query row a sequence, at the speed at which K and V can be read.
 *
 * A block of 4 warps walks over tiles of one KV head; a warp has 16 tokens of each tile (32 where head_dim is 64) and its
 * own ring of stages in shared memory, filled by 16-byte asynchronous copies, so the loop has no barrier:
 *
 *   tile:   | warp 0: 16 tokens | warp 1 | warp 2 | warp 3 |      each warp its own softmax and sums,
 *   head:   | tile | tile | tile | ... |                          merged at the head's end
 *
 * attention_tiles.cuh has what a warp does with a tile, attention_merge.cuh the merge.
 */
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "attention_merge.cuh"
#include "chain.h"
#include "copy.h"

namespace minisgl {
namespace {

using namespace decode;

template <class T, int HeadDim, int Columns>
__global__ void __launch_bounds__(warps * 32) decode_kernel(const Decode a) {
  using L = Layout<HeadDim>;
  extern __shared__ __align__(128) char shared[];
  float *statistics = reinterpret_cast<float *>(shared + L::stages * warps * L::stage_bytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const uint32_t ring = shared_address(shared) + warp * L::stages * L::stage_bytes;
  if (!a.early) dependency_wait();
  dependency_trigger();
  const int4 where = __ldcg(reinterpret_cast<const int4 *>(a.starts + blockIdx.x));
  const Start start{where.x, where.y, where.z, where.w, __ldcg(&a.starts[blockIdx.x].head_block), {}};
  const int count = start.count;
  if (count == 0) return;  // block 0 has work, and waits for the op before

  // The walk that loads runs `stages` tiles ahead of the one that computes.
  Walk<L::tile> walk;
  walk.begin(a, start);
  Walk<L::tile> ahead = walk;
  int row_of_lane = token_row<HeadDim>(a, ahead, warp, lane), issued = 0;
  const auto issue = [&](int skip) {
    if (issued < count) {
      copy_tile<T, HeadDim>(a, ahead, ring + issued % L::stages * L::stage_bytes, row_of_lane, skip, warp, lane);
      if (++issued < count) {
        ahead.advance(a);
        row_of_lane = token_row<HeadDim>(a, ahead, warp, lane);
      }
    }
    copy_commit();
  };
  uint4 q[Columns][HeadDim / 32];
  const auto load_query = [&] {
    const T *row = static_cast<const T *>(a.q) +
                   (static_cast<int64_t>(walk.sequence) * a.kv_heads + walk.head) * a.group * HeadDim;
#pragma unroll
    for (int c = 0; c < Columns; c++)
#pragma unroll
      for (int i = 0; i < HeadDim / 32; i++) {
        q[c][i] = make_uint4(0, 0, 0, 0);
        if (c * 8 + g < a.group)
          q[c][i] = __ldcg(reinterpret_cast<const uint4 *>(row + (c * 8 + g) * HeadDim) + 4 * i + t);
      }
  };
  int prologue = 0;
  if (a.early) {
    // The last token's row is being written by the op before: it is left out here and copied after the wait.
    const int last_tile = (walk.context - 1) / L::tile, last_warp = (walk.context - 1) % L::tile / L::rows;
    const int last_row = (walk.context - 1) % L::rows;
    const int before_last = min(min(last_tile - start.tile + 1, count), L::stages);
    int missing_stage = -1, missing_row = 0;
    for (; prologue < before_last; prologue++) {
      const bool has_last = start.tile + prologue == last_tile && warp == last_warp;
      if (has_last) missing_stage = prologue, missing_row = __shfl_sync(~0u, row_of_lane, last_row);
      issue(has_last ? last_row : -1);
    }
    dependency_wait();
    load_query();
    if (missing_stage >= 0 && lane < L::units) {
      const int64_t offset = (static_cast<int64_t>(missing_row) * a.kv_heads + start.head) * HeadDim;
      const uint32_t stage = ring + missing_stage * L::stage_bytes;
      const uint4 k = __ldcg(reinterpret_cast<const uint4 *>(static_cast<const T *>(a.k_cache) + offset) + lane);
      const uint4 v = __ldcg(reinterpret_cast<const uint4 *>(static_cast<const T *>(a.v_cache) + offset) + lane);
      store_shared(stage + L::k_offset(last_row, lane), k);
      store_shared(stage + L::v_offset(last_row, lane), v);
    }
  } else {
    load_query();
  }
  for (; prologue < L::stages; prologue++) issue(-1);

  State<HeadDim, Columns> state;
  state.clear();
  const bool in_progress = start.tile > 0;  // the first head began in an earlier block
  const bool is_last = in_progress && start.tile + count >= walk.tiles();  // of the blocks that share it
  bool whole = !in_progress;  // the block has the head's first tile
  for (int i = 0; i < count; i++) {
    copy_wait<L::stages - 1>();
    __syncwarp();
    const int valid = walk.context - (walk.tile * L::tile + warp * L::rows);
    if (valid > 0)
      add_tile<T, HeadDim, Columns>(state, q, ring + i % L::stages * L::stage_bytes, valid, a.scale, lane);
    __syncwarp();
    const bool head_ends = walk.tile + 1 == walk.tiles();
    if (head_ends || i + 1 == count) {
      const Meeting<HeadDim> meeting{shared, statistics, i % L::stages};
      store_warp(state, meeting, a.group, warp, lane);
      __syncthreads();
      merge_warps<T, HeadDim>(a, walk.sequence, walk.head, meeting, whole && head_ends, whole);
      __syncthreads();
      state.clear();
    }
    issue(-1);
    if (i + 1 == count) break;
    walk.advance(a);
    if (head_ends) {
      whole = true;
      load_query();
    }
  }
  if (is_last) merge_blocks<T, HeadDim>(a, start.sequence, start.head, start.head_block);
}

template <class T, int HeadDim, int Columns>
struct Kernel {
  static constexpr auto function = decode_kernel<T, HeadDim, Columns>;
  static constexpr size_t shared_bytes =
      Layout<HeadDim>::stages * warps * Layout<HeadDim>::stage_bytes + warps * max_group * 2 * sizeof(float);
};

/* Calls f with the Kernel of a shape. */
template <class F>
void dispatch(int32_t dtype, int head_dim, int group, F f) {
  dispatch_half(dtype, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool wide = group > 8;
    switch (head_dim) {
      case 64:
        return wide ? f(Kernel<T, 64, 2>()) : f(Kernel<T, 64, 1>());
      case 128:
        return wide ? f(Kernel<T, 128, 2>()) : f(Kernel<T, 128, 1>());
      case 256:
        return wide ? f(Kernel<T, 256, 2>()) : f(Kernel<T, 256, 1>());
      default:
        fail("decode attention has no head_dim %d", head_dim);
    }
  });
}

}  // namespace

bool DecodePlan::supports(const msgl_device *device, int heads, int kv_heads, int head_dim) {
  const int group = heads / kv_heads;
  if ((head_dim != 64 && head_dim != 128 && head_dim != 256) || group > max_group) return false;
  bool fits = false;
  dispatch(MSGL_BF16, head_dim, group, [&](auto kernel) {
    fits = kernel.shared_bytes <= static_cast<size_t>(device->shared_per_block);
  });
  return fits;
}

DecodePlan::DecodePlan(const msgl_device *device, const AttentionShape &shape, int32_t dtype)
    : shape_(shape), dtype_(dtype), multiprocessors_(device->multiprocessors),
      ring_(sizeof(Start) * (most_blocks * device->multiprocessors)) {
  const int group = shape.heads / shape.kv_heads;
  dispatch(dtype, shape.head_dim, group, [&](auto kernel) {
    const int bytes = static_cast<int>(kernel.shared_bytes);
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
    prefer_shared_memory(kernel.function);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_, kernel.function, warps * 32, bytes), "occupancy");
  });
  blocks_ = std::clamp(blocks_, 1, most_blocks);
  const int grid = blocks_ * multiprocessors_;
  starts_ = DeviceBuffer(sizeof(Start) * grid);
  const size_t partials = sizeof(uint32_t) * 2 * grid * group * (shape.head_dim + 4);
  partials_ = DeviceBuffer(partials);
  check(cudaMemset(partials_.get(), 0xff, partials), "cudaMemset");
}

int DecodePlan::grid(int sequences) const {
  // Few sequences leave room on the multiprocessors, for the products around attention to load their weights.
  const int blocks = sequences <= 4 ? 2 : blocks_;
  return std::min(blocks, blocks_) * multiprocessors_;
}

void DecodePlan::update(msgl_device *device, const int32_t *context_lengths, int sequences) {
  const int tile = tile_tokens(shape_.head_dim), grid = this->grid(sequences);
  const auto tiles_of = [&](int sequence) { return ceil_div(context_lengths[sequence], tile); };
  int64_t total = 0;
  for (int i = 0; i < sequences; i++) total += tiles_of(i) * shape_.kv_heads;
  std::vector<Start> starts(grid, Start{});
  const int64_t blocks = std::min<int64_t>(grid, total);
  // Blocks that keep to one head load one query and meet others once: so it is done where no block gets more tiles by it.
  const auto head_blocks = [&](int sequence) { return std::max<int64_t>(1, tiles_of(sequence) * blocks / total); };
  bool separate = true;
  for (int i = 0; i < sequences; i++)
    separate &= tiles_of(i) * blocks >= total && ceil_div(tiles_of(i), head_blocks(i)) <= ceil_div(total, blocks);
  int32_t next = 0;
  for (int i = 0; separate && i < sequences; i++) {
    const int64_t tiles = tiles_of(i), parts = head_blocks(i);
    for (int head = 0; head < shape_.kv_heads; head++) {
      const int32_t first = next;
      for (int64_t part = 0; part < parts; part++) {
        const int32_t begin = part * tiles / parts, end = (part + 1) * tiles / parts;
        starts[next++] = {i, head, begin, end - begin, first, {}};
      }
    }
  }
  int sequence = 0;
  int64_t before = 0;  // tiles of the sequences before `sequence`
  for (int64_t block = 0; !separate && block < blocks; block++) {
    const int64_t begin = block * total / blocks, end = (block + 1) * total / blocks;
    while (begin >= before + tiles_of(sequence) * shape_.kv_heads) before += tiles_of(sequence++) * shape_.kv_heads;
    const int64_t within = begin - before, tiles = tiles_of(sequence), first = begin - within % tiles;
    starts[block] = {sequence,
                     static_cast<int32_t>(within / tiles),
                     static_cast<int32_t>(within % tiles),
                     static_cast<int32_t>(end - begin),
                     static_cast<int32_t>(((first + 1) * blocks - 1) / total),  // the one that has tile `first`
                     {}};
  }
  // A sequence grows into another tile every 64th or 128th step: what has not changed is not copied again.
  const char *bytes = reinterpret_cast<const char *>(starts.data());
  const size_t size = sizeof(Start) * starts.size();
  if (read_.empty() && uploaded_.size() == size && std::memcmp(uploaded_.data(), bytes, size) == 0) return;
  uploaded_.assign(bytes, bytes + size);
  read_.clear();
  void *staged = ring_.acquire();
  std::memcpy(staged, bytes, size);
  enqueue_copy(device, starts_.get(), staged, size);
  ring_.release(device->stream);
}

void DecodePlan::run(msgl_device *device, const AttentionArguments &arguments, bool stored) {
  const int group = shape_.heads / shape_.kv_heads;
  // The rows that an earlier op since the last update has stored into this cache need not be there yet.
  const bool first = std::find(read_.begin(), read_.end(), arguments.k_cache) == read_.end();
  if (first) read_.push_back(arguments.k_cache);
  const Decode decode{arguments.out,
                      arguments.q,
                      arguments.k_cache,
                      arguments.v_cache,
                      arguments.page_begin,
                      arguments.pages,
                      arguments.last_page_length,
                      starts_.get<Start>(),
                      partials_.get<uint32_t>(),
                      arguments.sequences,
                      group,
                      shape_.kv_heads,
                      shape_.page_size,
                      arguments.scale * static_cast<float>(M_LOG2E),
                      stored && first && device->dependent_launch};
  dispatch(dtype_, shape_.head_dim, group, [&](auto kernel) {
    launch(device, Follow::dependent, kernel.function, grid(arguments.sequences), warps * 32, kernel.shared_bytes,
           decode);
  });
}

}  // namespace minisgl
