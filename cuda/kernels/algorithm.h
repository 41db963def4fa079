/*
 * algorithm.h: which algorithm computes a product, as a line of text and as a table. A line is
 *
 *   n k tokens form cublaslt <its nine configuration attributes>      form: plain, add, f32 or gated
 *   n k tokens form tiled <rows> <tokens> <splits> <bytes of shared memory>
 *
 * and stands for all numbers of tokens from half of its own, excluded, to its own. What follows a # is a comment.
 * Lines say nothing of bias or of bfloat16 and float16, between which the times do not differ.
 */
#ifndef MINISGL_ALGORITHM_H
#define MINISGL_ALGORITHM_H

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cublaslt.h"

namespace minisgl {

/* What is computed with x W^T: stored, added to out, stored in float32, or gated (msgl_norm_gated_linear). */
enum class Form { plain, add, f32, gated };

struct Shape {
  int64_t n, k;
  int tokens;
  Form form;
};

/* How tiled.cu lays a product over the device. */
struct TiledPlan {
  int rows, tokens;  // of a block's tile: 64 or 128; 16, 32, 64, 128 or 256
  int splits;        // of k: 1 to 8 blocks that add their sums
  int shared_bytes;  // of a block's ring, about
};

struct Algorithm {
  bool tiled;
  TiledPlan plan;           // if tiled
  CublasLt::Config config;  // otherwise
};

struct Tuned {
  Shape shape;
  Algorithm algorithm;
};

std::string format(const Tuned &entry);
/* Nothing for lines that are empty or not of this form: a newer version's table must not stop an older one. */
std::optional<Tuned> parse_tuned(const std::string &line);

class AlgorithmTable {
 public:
  void add(const Tuned &entry);
  /* The shape's own entry, or that of the nearest shape, of the same form and number of tokens, within a factor of two. */
  const Algorithm *find(const Shape &shape) const;

 private:
  using Kind = std::tuple<Form, int>;  // and the tokens, rounded up to a power of two
  std::map<Kind, std::vector<Tuned>> entries_;
};

/* What serves a shape without an entry where weights rather than operations take the time: plans of few tokens. */
std::optional<TiledPlan> default_plan(const Shape &shape, int multiprocessors);

}  // namespace minisgl

#endif
