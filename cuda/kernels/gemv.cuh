/*
 * gemv.cuh: what the two kernels of gemv.cu share: how a product is cut, its sums, and what is done with them.
 *
 * W is cut into slices of 8 rows, and k into chunks of 64. A block has 16 warps and works on up to `Slices` slices at a
 * time; warp w takes chunks w, w + 16, ... of their rows:
 *
 *              k:  | chunk 0 | chunk 1 | ... | chunk 15 | chunk 16 | ...
 *   slice 0        |  warp 0 |  warp 1 | ... |  warp 15 |  warp 0  | ...
 *   slice 1        |  warp 0 |  warp 1 | ...
 *
 * so that each row is read in order, and the 16 partial sums of an output are added through shared memory at the end.
 * Products are m16n8k16 with two slices as m and 8 tokens as n. Every lane copies exactly the 16-byte pieces of W that it
 * will multiply, asynchronously, into slots that are its own: the loop needs no barrier and no swizzle.
 *
 * A piece of a lane: row g = lane / 4 of a slice, 8 values of k from 8 (lane % 4) on, of each half chunk. Sums do not
 * depend on the order of k as long as W and x use the same (see attention_decode.cu).
 *
 * What stands around a product can be part of it:
 *   norm   x is RMS-normalised: each piece of x is multiplied by the norm's weight as it is used, the sum of its squares
 *          goes along, and outputs are scaled by the reciprocal root at the end
 *   add    outputs are added to what `out` holds
 *   Gated  W is [gate; up]; slices alternate between the two, and the output is silu(gate) * up
 */
#ifndef MINISGL_GEMV_CUH
#define MINISGL_GEMV_CUH

#include "mma.cuh"

namespace minisgl::gemv {

constexpr int warps = 16, threads = warps * 32, slice_rows = 8, chunk = 64;
constexpr int slot_bytes = threads * 16;  // one 16-byte piece of every lane

struct Gemv {
  void *out;
  const void *x, *w, *bias, *norm;
  int64_t k;
  int n, slices, chunks, tokens, stages;  // n: columns of out
  float epsilon;
  bool float_out, add;
};

DEVICE __nv_bfloat162 multiply(__nv_bfloat162 a, __nv_bfloat162 b) { return __hmul2(a, b); }
DEVICE __half2 multiply(__half2 a, __half2 b) { return __hmul2(a, b); }
DEVICE float2 to_floats(__nv_bfloat162 a) { return __bfloat1622float2(a); }
DEVICE float2 to_floats(__half2 a) { return __half22float2(a); }

/* Multiplies two values of x by the norm's weights and adds their squares to `squares`. */
template <class T>
DEVICE uint32_t normalize(uint32_t x, uint32_t weights, float &squares) {
  using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
  const Pair pair = *reinterpret_cast<const Pair *>(&x);
  const float2 values = to_floats(pair);
  squares += values.x * values.x + values.y * values.y;
  const Pair product = multiply(pair, *reinterpret_cast<const Pair *>(&weights));
  return *reinterpret_cast<const uint32_t *>(&product);
}
template <class T>
DEVICE void normalize(uint4 &x, const uint4 &weights, float &squares) {
  x.x = normalize<T>(x.x, weights.x, squares);
  x.y = normalize<T>(x.y, weights.y, squares);
  x.z = normalize<T>(x.z, weights.z, squares);
  x.w = normalize<T>(x.w, weights.w, squares);
}

/* The row of W with which a slice begins. */
template <bool Gated>
DEVICE int64_t first_row(const Gemv &a, int slice) {
  return Gated ? slice % 2 * a.n + slice / 2 * slice_rows : slice * slice_rows;
}

/* A block's sums: [warp][token][row], in which the pairs of tokens that a warp stores at once lie in different banks. */
template <int Slices, int Tokens>
struct Sums {
  static constexpr int rows = Slices * slice_rows, stride = Tokens == 1 ? rows : rows + 4;
  static constexpr int of_warp = Tokens * stride, bytes = warps * of_warp * 4;
  static constexpr int tiles = (Slices + 1) / 2, columns = (Tokens + 7) / 8;  // of 16 rows, of 8 tokens

  DEVICE static void store(float *sums, const float (&c)[tiles][columns][4], int warp, int lane) {
    const int g = lane >> 2, t = lane & 3;
    float *mine = sums + warp * of_warp + g;
#pragma unroll
    for (int slice = 0; slice < Slices; slice++)
#pragma unroll
      for (int column = 0; column < columns; column++) {
        const float *pair = c[slice / 2][column] + slice % 2 * 2;  // of row g and tokens 2t, 2t + 1 of the column
        float *to = mine + (column * 8 + 2 * t) * stride + slice * slice_rows;
        if (Tokens > 1 || t == 0) to[0] = pair[0];
        if (Tokens > 1) to[stride] = pair[1];
      }
  }
};

/* Bias, and what `out` holds, of this thread's output: token threadIdx / rows, row threadIdx % rows. */
template <class T, int Rows>
DEVICE float added_to(const Gemv &a, int slice_begin, int slice_end) {
  const int row = threadIdx.x % Rows, token = threadIdx.x / Rows, column = slice_begin * slice_rows + row;
  if (slice_begin + row / slice_rows >= slice_end || token >= a.tokens) return 0.f;
  float value = a.bias == nullptr ? 0.f : to_float(static_cast<const T *>(a.bias)[column]);
  if (a.add) value += to_float(static_cast<const T *>(a.out)[static_cast<int64_t>(token) * a.n + column]);
  return value;
}

DEVICE float silu(float x) { return x / (1.f + __expf(-x)); }

/*
 * Outputs of the slices from slice_begin to slice_end, from the sums of all warps and, with a norm, squares [warp][token].
 * Kept: added_to was called before, and gave `kept`.
 */
template <class T, int Slices, int Tokens, bool Gated, bool Kept>
DEVICE void finish(const Gemv &a, const float *sums, const float *squares, int slice_begin, int slice_end,
                   float kept) {
  using S = Sums<Slices, Tokens>;
  constexpr int unit = Gated ? 2 : 1, rows = S::rows / unit;
  for (int i = threadIdx.x; i < rows * Tokens; i += threads) {
    const int row = i % rows, token = i / rows, slice = row / slice_rows;
    if (slice_begin + unit * slice >= slice_end || token >= a.tokens) continue;
    const float *partial = sums + token * S::stride + unit * slice * slice_rows + row % slice_rows;
    float sum = 0.f, up = 0.f, scale = 1.f;
#pragma unroll
    for (int w = 0; w < warps; w++) {
      sum += partial[w * S::of_warp];
      if (Gated) up += partial[w * S::of_warp + slice_rows];
    }
    if (a.norm != nullptr) {
      float all = 0.f;
#pragma unroll
      for (int w = 0; w < warps; w++) all += squares[w * Tokens + token];
      scale = rsqrtf(all / a.k + a.epsilon);
    }
    sum *= scale;
    if (Gated) sum = silu(sum) * (up * scale);
    const int column = slice_begin / unit * slice_rows + row;
    const int64_t index = static_cast<int64_t>(token) * a.n + column;
    if (Kept) sum += kept;
    else if (a.bias != nullptr) sum += to_float(static_cast<const T *>(a.bias)[column]);
    if (a.float_out) {
      static_cast<float *>(a.out)[index] = sum;
    } else {
      T *out = static_cast<T *>(a.out) + index;
      *out = from_float<T>(!Kept && a.add ? sum + to_float(*out) : sum);
    }
  }
}

}  // namespace minisgl::gemv

#endif
