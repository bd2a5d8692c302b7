#include "bins.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
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
// they share most. A run whose path and subtree fit is packed whole; above it every run overflows.
class Splitter {
 public:
  Splitter(const Forest& forest, const Samples& samples, std::int64_t max_tokens)
      : forest_(forest),
        samples_(samples),
        max_tokens_(max_tokens),
        num_children_(forest.runs.size(), 0),
        ending_(forest.runs.size()),
        waiting_(forest.runs.size() + 1) {
    for (const Run& run : forest.runs) {
      if (run.parent != kNone) ++num_children_[index(run.parent)];
    }
  }

  // The trees that fit, and the splits of those that do not.
  std::vector<Piece> pieces() {
    gather();
    for (std::size_t r = forest_.runs.size(); r-- > 0;) {
      if (!fits(forest_.runs[r])) hand_up(forest_.runs[r].parent, split(r));
    }
    return std::move(waiting_[0]);
  }

 private:
  // The tokens of a run's subtree and of the path to it are as many from each of its rows.
  static std::int64_t total(const Run& run) { return run.depth + run.end - run.row; }
  bool fits(const Run& run) const { return total(run) <= max_tokens_; }

  // Makes a piece of every largest subtree that fits, and finds the samples that end above them.
  void gather() {
    std::vector<std::int32_t> top(forest_.runs.size(), kNone);  // the largest such subtree's run
    std::vector<Piece> whole(forest_.runs.size(), Piece{0, 0, {}});
    for (std::size_t r = 0; r < top.size(); ++r) {
      const Run& run = forest_.runs[r];
      const std::int32_t above = run.parent == kNone ? kNone : top[index(run.parent)];
      if (fits(run)) top[r] = above == kNone ? static_cast<std::int32_t>(r) : above;
    }
    for (std::int64_t s = 0; s < samples_.num_samples; ++s) {
      const std::int32_t last = forest_.last[index(s)];
      if (last == kNone) continue;
      const std::int32_t subtree = top[index(last)];
      subtree == kNone ? ending_[index(last)].push_back(s) : whole[index(subtree)].add(s);
    }
    for (std::size_t r = 0; r < top.size(); ++r) {
      if (whole[r].samples.empty()) continue;
      whole[r].tokens = total(forest_.runs[r]);
      waiting_[index(forest_.runs[r].parent + 1)].push_back(std::move(whole[r]));
    }
  }

  // Merges the pieces below a run with the samples that end in it.
  std::vector<Piece> split(std::size_t r) {
    std::vector<Piece> below = std::move(waiting_[r + 1]);
    const std::int64_t path = forest_.runs[r].bottom();
    for (const std::int64_t s : ending_[r]) below.push_back({path, s, {s}});
    const bool merges = num_children_[r] > 1 || !ending_[r].empty();
    return merges ? best_fit(std::move(below), path, max_tokens_) : below;
  }

  void hand_up(std::int32_t parent, std::vector<Piece> pieces) {
    std::vector<Piece>& above = waiting_[index(parent + 1)];
    std::move(pieces.begin(), pieces.end(), std::back_inserter(above));
  }

  const Forest& forest_;
  const Samples& samples_;
  std::int64_t max_tokens_;
  std::vector<std::int32_t> num_children_;
  std::vector<std::vector<std::int64_t>> ending_;  // the samples that end in an overflowing run
  std::vector<std::vector<Piece>> waiting_;        // below run r at r + 1; the trees at 0
};

}  // namespace

void check_lengths(const Samples& samples, std::int64_t max_tokens) {
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    if (samples.length(s) <= max_tokens) continue;
    throw std::invalid_argument("sample " + std::to_string(s) + " has " +
                                std::to_string(samples.length(s)) +
                                " tokens, more than max_tokens=" + std::to_string(max_tokens));
  }
}

std::vector<std::vector<std::int64_t>> plan_microbatches(const Samples& samples,
                                                         std::int64_t max_tokens, bool share) {
  check_lengths(samples, max_tokens);
  const Forest forest = merge_prefixes(samples, share);
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
