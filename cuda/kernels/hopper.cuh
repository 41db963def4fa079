/*
 * hopper.cuh: the instructions of Hopper that our matrix kernels use: bulk tensor copies that complete on barriers in
 * shared memory, products by a warpgroup (4 warps), clusters of blocks. After the PTX ISA, sections 9.7.9 (data movement),
 * 9.7.13 (mbarrier) and 9.7.15 (wgmma).
 */
#ifndef MINISGL_HOPPER_CUH
#define MINISGL_HOPPER_CUH

#include <cuda.h>

#include "mma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define MINISGL_HOPPER 1
#endif

namespace minisgl {

/* ---- barriers and bulk copies: addresses are those of shared memory ---- */

DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* Makes initialised barriers visible to the copy engine. */
DEVICE void barrier_init_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and has the phase wait for `bytes` that copies will bring. */
DEVICE void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Waits for the end of the phase of this parity: 0 is the first. */
DEVICE void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/* Fetches the map itself, which the first copy would wait for. */
DEVICE void prefetch_map(const CUtensorMap &map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/* Copies the map's box at (column, row) to shared memory; zeros where it lies outside the matrix. */
DEVICE void copy_tile(uint32_t destination, const CUtensorMap &map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          destination),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

/* ---- clusters ---- */

DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Four floats of the shared memory of block `rank` of the cluster, at the address they would have in one's own. */
DEVICE float4 load_peer(uint32_t address, int rank) {
  float4 v;
  asm volatile(
      "{.reg .b32 peer;\n"
      "mapa.shared::cluster.u32 peer, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [peer];}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

/* ---- products by a warpgroup ---- */

/* Describes a tile whose rows have 128 bytes, swizzled as copies with CU_TENSOR_MAP_SWIZZLE_128B do. A column that is a
 * multiple of 16 values is reached by adding column / 8. */
DEVICE uint64_t tile_descriptor(uint32_t address) {
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

DEVICE void warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Waits until at most `Groups` of the committed groups are under way. */
template <int Groups>
DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
}

#define MINISGL_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define MINISGL_C8(i) MINISGL_C4(i), MINISGL_C4(i + 4)
#define MINISGL_C16(i) MINISGL_C8(i), MINISGL_C8(i + 8)
#define MINISGL_C32(i) MINISGL_C16(i), MINISGL_C16(i + 16)
#define MINISGL_C64(i) MINISGL_C32(i), MINISGL_C32(i + 32)
#define MINISGL_R8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MINISGL_R16 MINISGL_R8", %8, %9, %10, %11, %12, %13, %14, %15"
#define MINISGL_R32 MINISGL_R16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MINISGL_R64 MINISGL_R32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MINISGL_WGMMA(type, columns, results, values, a, b)                                                       \
  asm volatile("{.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                                     \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" results "}, %" a ", %" b \
               ", add, 1, 1, 0, 0;}"                                                                             \
               : values                                                                                          \
               : "l"(a_tile), "l"(b_tile))
#define MINISGL_WGMMA_TYPED(type)                                                                     \
  if constexpr (N == 16) MINISGL_WGMMA(type, "16", MINISGL_R8, MINISGL_C8(0), "8", "9");              \
  if constexpr (N == 32) MINISGL_WGMMA(type, "32", MINISGL_R16, MINISGL_C16(0), "16", "17");          \
  if constexpr (N == 64) MINISGL_WGMMA(type, "64", MINISGL_R32, MINISGL_C32(0), "32", "33");          \
  if constexpr (N == 128) MINISGL_WGMMA(type, "128", MINISGL_R64, MINISGL_C64(0), "64", "65")

/*
 * c [64, N] += a [64, 16] b [N, 16]^T, both tiles in shared memory. With g = lane / 4, t = lane % 4 and warp w of the four:
 * c[4 j + 2 h + e] is row 16 w + g + 8 h, column 8 j + 2 t + e.
 */
template <class T, int N>
DEVICE void warpgroup_mma(float *c, uint64_t a_tile, uint64_t b_tile) {
#ifdef MINISGL_HOPPER
  if constexpr (std::is_same_v<T, bf16>) {
    MINISGL_WGMMA_TYPED("bf16");
  } else {
    MINISGL_WGMMA_TYPED("f16");
  }
#endif
}

#undef MINISGL_WGMMA_TYPED
#undef MINISGL_WGMMA
#undef MINISGL_R64
#undef MINISGL_R32
#undef MINISGL_R16
#undef MINISGL_R8
#undef MINISGL_C64
#undef MINISGL_C32
#undef MINISGL_C16
#undef MINISGL_C8
#undef MINISGL_C4

}  // namespace minisgl

#endif
