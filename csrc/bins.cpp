#include "bins.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "forest.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// Samples that stay together, and the merged tokens they take with the path above them.
struct Piece {
  std::int64_t tokens;
  std::int64_t first;  // the smallest of `samples`
  std::vector<std::int64_t> samples;

  void add(std::int64_t sample) {
    first = samples.empty() ? sample : std::min(first, sample);
    samples.push_back(sample);
  }
  void take(const Piece& other) {
    first = std::min(first, other.first);
    samples.insert(samples.end(), other.samples.begin(), other.samples.end());
  }
};

// Best-fit decreasing: merges pieces that share `path` tokens into as few as it finds.
std::vector<Piece> best_fit(std::vector<Piece> pieces, std::int64_t path, std::int64_t max_tokens) {
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return a.tokens != b.tokens ? a.tokens > b.tokens : a.first < b.first;
  });
  std::vector<Piece> bins;
  std::set<std::pair<std::int64_t, std::size_t>> room;  // (free tokens, bin)
  for (Piece& piece : pieces) {
    const std::int64_t need = piece.tokens - path;
    const auto best = room.lower_bound({need, 0});
    if (best == room.end()) {
      room.emplace(max_tokens - piece.tokens, bins.size());
      bins.push_back(std::move(piece));
      continue;
    }
    const auto [free, bin] = *best;
    room.erase(best);
    room.emplace(free - need, bin);
    bins[bin].tokens += need;
    bins[bin].take(piece);
  }
  return bins;
}

// Splits the trees that exceed the budget, from the leaves up, so that pieces merge first where
// they share most. A row whose path and subtree fit is packed whole; above it every row overflows.
class Splitter {
 public:
  Splitter(const ForestLayout& forest, const Samples& samples, std::int64_t max_tokens)
      : forest_(forest), max_tokens_(max_tokens), depth_(forest.tokens.size()) {
    for (std::size_t row = 0; row < depth_.size(); ++row) {
      const std::int32_t parent = forest.parent[row];
      depth_[row] = parent < 0 ? 0 : depth_[index(parent)] + 1;
    }
    first_ending_.assign(depth_.size(), -1);
    next_ending_.assign(index(samples.num_samples), -1);
    for (std::int64_t s = samples.num_samples; s-- > 0;) {
      if (samples.length(s) == 0) continue;
      const std::int32_t row = forest.flat_index[index(samples.offsets[s + 1] - 1)];
      next_ending_[index(s)] = first_ending_[index(row)];
      first_ending_[index(row)] = s;
    }
  }

  // The trees that fit, and the splits of those that do not.
  std::vector<Piece> pieces() {
    for (std::int64_t row = forest_.num_rows(); row-- > 0;) {
      const std::int64_t parent = forest_.parent[index(row)];
      if (!fits(row)) {
        hand_up(parent, split(row));
      } else if (parent < 0 || !fits(parent)) {
        hand_up(parent, {whole(row)});
      }
    }
    return std::move(waiting_[-1]);
  }

 private:
  // Tokens of the path to a row and of its subtree.
  std::int64_t total(std::int64_t row) const {
    return depth_[index(row)] + forest_.subtree_end[index(row)] - row;
  }
  bool fits(std::int64_t row) const { return total(row) <= max_tokens_; }

  Piece whole(std::int64_t row) const {
    Piece piece{total(row), 0, {}};
    for (std::int64_t r = row; r < forest_.subtree_end[index(row)]; ++r) {
      for_each_ending(r, [&](std::int64_t sample) { piece.add(sample); });
    }
    return piece;
  }

  std::vector<Piece> split(std::int64_t row) {
    std::vector<Piece> below = std::move(waiting_[row]);
    waiting_.erase(row);
    const bool one_child = forest_.subtree_end[index(row + 1)] == forest_.subtree_end[index(row)];
    if (one_child && first_ending_[index(row)] < 0) return below;  // nothing new to merge
    const std::int64_t path = depth_[index(row)] + 1;
    for_each_ending(row, [&](std::int64_t sample) { below.push_back({path, sample, {sample}}); });
    return best_fit(std::move(below), path, max_tokens_);
  }

  void hand_up(std::int64_t parent, std::vector<Piece> pieces) {
    std::vector<Piece>& above = waiting_[parent];
    if (above.empty()) {
      above = std::move(pieces);
    } else {
      std::move(pieces.begin(), pieces.end(), std::back_inserter(above));
    }
  }

  template <typename Visit>
  void for_each_ending(std::int64_t row, Visit visit) const {
    for (std::int64_t s = first_ending_[index(row)]; s >= 0; s = next_ending_[index(s)]) visit(s);
  }

  const ForestLayout& forest_;
  std::int64_t max_tokens_;
  std::vector<std::int64_t> depth_;         // tokens above a row
  std::vector<std::int64_t> first_ending_;  // the first sample that ends at a row, or -1
  std::vector<std::int64_t> next_ending_;   // the next sample that ends where this one does, or -1
  std::unordered_map<std::int64_t, std::vector<Piece>> waiting_;  // below a row; -1: the trees
};

void check_lengths(const Samples& samples, std::int64_t max_tokens) {
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    if (samples.length(s) <= max_tokens) continue;
    throw std::invalid_argument("sample " + std::to_string(s) + " has " +
                                std::to_string(samples.length(s)) +
                                " tokens, more than max_tokens=" + std::to_string(max_tokens));
  }
}

}  // namespace

std::vector<std::vector<std::int64_t>> plan_microbatches(const Samples& samples,
                                                         std::int64_t max_tokens, bool share) {
  check_lengths(samples, max_tokens);
  const ForestLayout forest = build_forest(samples, share);
  std::vector<Piece> pieces = Splitter(forest, samples, max_tokens).pieces();
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    if (samples.length(s) == 0) pieces.push_back({0, s, {s}});
  }
  std::vector<Piece> bins = best_fit(std::move(pieces), 0, max_tokens);
  std::sort(bins.begin(), bins.end(),
            [](const Piece& a, const Piece& b) { return a.first < b.first; });
  std::vector<std::vector<std::int64_t>> plan;
  for (Piece& bin : bins) {
    std::sort(bin.samples.begin(), bin.samples.end());
    plan.push_back(std::move(bin.samples));
  }
  return plan;
}

void register_bins(py::module_& m) {
  m.def(
      "plan_microbatches",
      [](const Array<std::int64_t>& ids, const Array<std::int32_t>& image_slots,
         const Array<std::int64_t>& offsets, std::int64_t max_tokens, bool share) {
        const Samples samples = view_samples(ids, image_slots, offsets);
        std::vector<std::vector<std::int64_t>> plan;
        {
          py::gil_scoped_release release;
          plan = plan_microbatches(samples, max_tokens, share);
        }
        py::list result;
        for (std::vector<std::int64_t>& bin : plan) result.append(to_numpy(std::move(bin)));
        return result;
      },
      py::arg("ids").noconvert(), py::arg("image_slots").noconvert(),
      py::arg("offsets").noconvert(), py::arg("max_tokens"), py::arg("share"));
}

}  // namespace fastmpi
