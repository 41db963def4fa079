// A weight [n, k] on the CPU: its rows in panels of 16, so that a vector register holds a column of several rows.
//
//   panel of floats  [k][16]            F32, F16
//                    [k / 2][16][2]     BF16: a dword holds two columns of a row (k odd: the last half dword is 0)
//   panel of blocks  for each block:    f16 scales [halves][16], then the block's dwords [words][16] as they are
//
// A part (a run of rows of one dtype) starts a panel of its own; rows that its last panel lacks are 0.
#pragma once

#include <vector>

#include "blocks.h"
#include "device.h"

namespace msgl {

constexpr int kPanel = 16;

struct WeightPart {
  int64_t row, rows;    // of the weight
  int64_t panel;        // index of its first panel in the weight
  int64_t panel_bytes;
  int dtype;
  uint8_t *data;
  int64_t panels() const { return (rows + kPanel - 1) / kPanel; }
};

/// Bytes of a panel, a multiple of 32.
int64_t panel_bytes(int dtype, int64_t k);
/// Packs a row of the part, k values of `dtype`: the part's own type, or any that is converted to its float type.
void pack_row(const WeightPart &part, int64_t k, int64_t row, const uint8_t *source, int dtype);
/// The F32 values of a row of the part.
void unpack_row(const WeightPart &part, int64_t k, int64_t row, float *values);

}  // namespace msgl

struct msgl_weight : msgl::Owned {
  using Owned::Owned;
  ~msgl_weight() override;

  int64_t n = 0, k = 0, panels = 0, bytes = 0;
  std::vector<msgl::WeightPart> parts;
  uint8_t *data = nullptr;
};
