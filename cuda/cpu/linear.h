// Matrix products with packed weights: linear.simd.cpp.
#pragma once

#include <cstdint>

#include "isa.h"

namespace msgl {

/// Consecutive panels of one part of a weight times some rows of x.
struct PanelProduct {
  const float *x;  // [rows, k]
  int64_t k;
  int32_t rows;
  int32_t dtype;          // of the panels
  const uint8_t *panels;  // the first
  int64_t panel_bytes;
  int64_t columns;  // of the output, 16 for each panel but the last, which may have fewer
  float *out;       // its first column; rows lie out_stride apart
  int64_t out_stride;
  const float *bias;  // of its first column, or null
};

// clang-format off
MSGL_EVERY_ISA(
/// Every output is acc = fma(x[i], w[i], acc) for i = 0 .. k - 1 from 0, plus the bias: the same bits for any number of
/// rows or columns in the product, on every instruction set.
void multiply_panels(const PanelProduct &product);
)
// clang-format on

}  // namespace msgl
