/* algorithm.cu: lines and tables of algorithms, and what is taken where no table helps. */
#include "algorithm.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace minisgl {
namespace {

constexpr const char *form_names[] = {"plain", "add", "f32", "gated"};

int power_of_two(int tokens) {
  int power = 1;
  while (power < tokens) power *= 2;
  return power;
}

/* The distance of two shapes of the same form: 1 is a factor of two. */
double distance(const Shape &a, const Shape &b) {
  const auto ratio = [](double p, double q) { return std::abs(std::log2(p / q)); };
  return ratio(a.n, b.n) + ratio(a.k, b.k);
}

bool valid(const TiledPlan &p) {
  return (p.rows == 64 || p.rows == 128) && p.tokens >= 16 && p.tokens <= 256 && p.tokens == power_of_two(p.tokens) &&
         p.splits > 0 && p.splits <= 8 && p.shared_bytes > 0 && p.shared_bytes < 224 << 10;
}

}  // namespace

std::string format(const Tuned &entry) {
  const Shape &s = entry.shape;
  std::ostringstream line;
  line << s.n << ' ' << s.k << ' ' << s.tokens << ' ' << form_names[static_cast<int>(s.form)];
  if (entry.algorithm.tiled) {
    const TiledPlan &p = entry.algorithm.plan;
    line << " tiled " << p.rows << ' ' << p.tokens << ' ' << p.splits << ' ' << p.shared_bytes;
  } else {
    line << " cublaslt";
    for (const int32_t value : entry.algorithm.config) line << ' ' << value;
  }
  return line.str();
}

std::optional<Tuned> parse_tuned(const std::string &line) {
  std::istringstream words(line.substr(0, line.find('#')));
  Tuned entry{};
  Shape &s = entry.shape;
  std::string form, provider;
  if (!(words >> s.n >> s.k >> s.tokens >> form >> provider) || s.n <= 0 || s.k <= 0 || s.tokens <= 0) return {};
  const auto name = std::find(std::begin(form_names), std::end(form_names), form);
  if (name == std::end(form_names)) return {};
  s.form = static_cast<Form>(name - form_names);
  entry.algorithm.tiled = provider == "tiled";
  if (entry.algorithm.tiled) {
    TiledPlan &p = entry.algorithm.plan;
    if (!(words >> p.rows >> p.tokens >> p.splits >> p.shared_bytes) || !valid(p)) return {};
    return entry;
  }
  if (provider != "cublaslt") return {};
  for (int32_t &value : entry.algorithm.config)
    if (!(words >> value)) return {};
  return entry;
}

void AlgorithmTable::add(const Tuned &entry) {
  std::vector<Tuned> &known = entries_[{entry.shape.form, power_of_two(entry.shape.tokens)}];
  for (Tuned &other : known)
    if (other.shape.tokens == entry.shape.tokens && distance(other.shape, entry.shape) == 0) {
      other = entry;
      return;
    }
  known.push_back(entry);
}

const Algorithm *AlgorithmTable::find(const Shape &shape) const {
  const auto known = entries_.find({shape.form, power_of_two(shape.tokens)});
  if (known == entries_.end()) return nullptr;
  const Tuned *best = nullptr;
  // Of equally near ones the least that has as many tokens, so that 96 serves 65 to 96 beside 128.
  const auto rank = [&](const Tuned &entry) {
    return std::tuple(distance(entry.shape, shape), entry.shape.tokens < shape.tokens, entry.shape.tokens);
  };
  for (const Tuned &entry : known->second)
    if (distance(entry.shape, shape) <= 1 && (best == nullptr || rank(entry) < rank(*best))) best = &entry;
  return best == nullptr ? nullptr : &best->algorithm;
}

std::optional<TiledPlan> default_plan(const Shape &shape, int multiprocessors) {
  if (shape.tokens > 64) return {};
  const int tokens = std::max(16, power_of_two(shape.tokens));
  const int64_t tiles = (shape.n + 63) / 64;
  // As many blocks as fill the device once, with four steps of 64 at least in each.
  const int64_t splits = std::clamp<int64_t>(multiprocessors / tiles, 1, std::min<int64_t>(8, (shape.k + 255) / 256));
  return TiledPlan{64, tokens, static_cast<int>(splits), 104 << 10};
}

}  // namespace minisgl
