// The ops on weights.
#include "linear.h"

#include <algorithm>

#include "weight.h"

namespace msgl {

namespace {

constexpr int32_t kRowBlock = 192;  // rows of x that stay in the second-level cache beside a panel

struct Linear {
  float *out;
  const float *x, *bias;
  const msgl_weight *weight;
  int32_t rows;
};

/// Rows from `row` on times the weight's panels [begin, end).
void multiply_block(const Linear &op, int32_t row, int32_t rows, int64_t begin, int64_t end) {
  const msgl_weight &weight = *op.weight;
  for (const WeightPart &part : weight.parts) {
    const int64_t first = std::max(begin, part.panel) - part.panel;
    const int64_t last = std::min(end - part.panel, part.panels());
    if (first >= last) continue;
    const int64_t column = part.row + first * kPanel;
    PanelProduct product{};
    product.x = op.x + row * weight.k;
    product.k = weight.k;
    product.rows = rows;
    product.dtype = part.dtype;
    product.panels = part.data + first * part.panel_bytes;
    product.panel_bytes = part.panel_bytes;
    product.columns = std::min(part.rows, last * kPanel) - first * kPanel;
    product.out = op.out + row * weight.n + column;
    product.out_stride = weight.n;
    product.bias = op.bias == nullptr ? nullptr : op.bias + column;
    MSGL_PICK(multiply_panels)(product);
  }
}

void run_linear(ThreadPool &pool, const Linear &op) {
  // More pieces than threads, so that one that loses its core for a while holds up little; of whole groups of panels,
  // as the kernels take them at once.
  const int64_t group = isa() == Isa::avx512 ? 4 : 2;
  const int64_t groups = (op.weight->panels + group - 1) / group;
  const int64_t blocks = (op.rows + kRowBlock - 1) / kRowBlock;
  const int64_t wanted = (op.rows > 32 ? 16 : 4) * pool.size() / std::max<int64_t>(1, blocks);
  const int64_t pieces = std::clamp<int64_t>(wanted, 1, groups);
  pool.run(blocks * pieces, [&](int64_t index) {
    const int64_t block = index / pieces, piece = index % pieces;
    const auto row = static_cast<int32_t>(op.rows * block / blocks);
    const auto end = static_cast<int32_t>(op.rows * (block + 1) / blocks);
    multiply_block(op, row, end - row, groups * piece / pieces * group,
                   std::min(op.weight->panels, groups * (piece + 1) / pieces * group));
  });
}

void embed(const msgl_weight &weight, int32_t id, float *out) {
  for (const WeightPart &part : weight.parts) {
    if (id >= part.row && id < part.row + part.rows) return unpack_row(part, weight.k, id - part.row, out);
  }
  std::fill_n(out, weight.k, 0.0f);
}

}  // namespace

}  // namespace msgl

using namespace msgl;

MSGL_EXPORT int32_t msgl_linear(msgl_device *device, void *out, const void *x, const msgl_weight *weight,
                                const void *bias, int32_t tokens, int32_t dtype, int32_t out_dtype) {
  if (dtype != MSGL_F32 || out_dtype != MSGL_F32) return fail("activations on the CPU are F32");
  const Linear op{static_cast<float *>(out), static_cast<const float *>(x), static_cast<const float *>(bias), weight,
                  tokens};
  return enqueue(device, [op](msgl_device &target) { run_linear(target.pool, op); });
}

MSGL_EXPORT int32_t msgl_embedding(msgl_device *device, void *out, const int32_t *ids, const msgl_weight *weight,
                                   int32_t tokens, int32_t dtype) {
  if (dtype != MSGL_F32) return fail("activations on the CPU are F32");
  return enqueue(device, [=](msgl_device &target) {
    constexpr int32_t kRows = 16;
    target.pool.run((tokens + kRows - 1) / kRows, [&](int64_t piece) {
      const auto end = std::min<int64_t>(tokens, (piece + 1) * kRows);
      for (int64_t i = piece * kRows; i < end; ++i) embed(*weight, ids[i], static_cast<float *>(out) + i * weight->k);
    });
  });
}
