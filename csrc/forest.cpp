#include "forest.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "threads.h"

namespace fastmpi {

namespace {

using Node = std::int32_t;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// The finaliser of splitmix64: every bit of the input moves every bit of the output.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// How many of the first n values of a and b agree, compared in blocks: memcmp is vectorised.
template <typename T>
std::int64_t common_prefix(const T* a, const T* b, std::int64_t n) {
  constexpr std::int64_t kBlock = 64;
  std::int64_t i = 0;
  while (i + kBlock <= n && std::memcmp(a + i, b + i, kBlock * sizeof(T)) == 0) i += kBlock;
  while (i < n && a[i] == b[i]) ++i;
  return i;
}

// The forest while it grows, with runs as nodes. A node is split where a sample leaves it or ends
// in it; the lower half keeps the number, so that what points at its end stays right.
class RadixForest {
 public:
  explicit RadixForest(const Samples& samples)
      : samples_(samples), eldest_child_(1, kNone), younger_(64, kNone) {
    runs_.reserve(index(samples.num_samples));
  }

  // Adds a sample from token `first` up to `end`, and returns the node of its last token. The
  // nodes it takes anew are those whose first token is one of its own.
  Node add(std::int64_t first, std::int64_t end) {
    Node node = kNone;
    for (std::int64_t i = first; i < end;) {
      const Node below = child(node, i);
      if (below == kNone) return append(node, i, end);
      const std::int64_t agree = common(runs_[index(below)], i, end);
      i += agree;
      node = agree < runs_[index(below)].length ? split(below, agree) : below;
    }
    return node;
  }

  Node append(Node parent, std::int64_t first, std::int64_t end) {
    const Node node = create(parent, first, end - first);
    adopt(parent, node);
    return node;
  }

  const std::vector<Run>& runs() const { return runs_; }

 private:
  Node create(Node parent, std::int64_t first, std::int64_t length) {
    const auto node = static_cast<Node>(runs_.size());
    const std::int32_t depth = parent == kNone ? 0 : runs_[index(parent)].bottom();
    runs_.push_back({static_cast<std::int32_t>(first), static_cast<std::int32_t>(length), parent,
                     depth, kNone, kNone});
    eldest_child_.push_back(kNone);
    return node;
  }

  std::int64_t common(const Run& run, std::int64_t i, std::int64_t end) const {
    std::int64_t n = std::min<std::int64_t>(run.length, end - i);
    n = common_prefix(samples_.ids + run.first, samples_.ids + i, n);
    return common_prefix(samples_.image_slots + run.first, samples_.image_slots + i, n);
  }

  bool begins_with(Node node, std::int64_t i) const {
    const std::int32_t j = runs_[index(node)].first;
    return samples_.ids[j] == samples_.ids[i] && samples_.image_slots[j] == samples_.image_slots[i];
  }

  // The child of `parent` (kNone: the root) that begins with token i, or kNone. Most nodes have
  // one child, found without hashing.
  Node child(Node parent, std::int64_t i) const {
    const Node eldest = eldest_child_[index(parent + 1)];
    if (eldest == kNone || begins_with(eldest, i)) return eldest;
    return younger_[find(parent, i)];
  }

  void adopt(Node parent, Node node) {
    Node& eldest = eldest_child_[index(parent + 1)];
    if (eldest == kNone) {
      eldest = node;
      return;
    }
    if (2 * ++num_younger_ > younger_.size()) grow();
    younger_[find(parent, runs_[index(node)].first)] = node;
  }

  // Cuts a node after `length` tokens; the new node above it takes its place among its siblings.
  Node split(Node lower, std::int64_t length) {
    const Run whole = runs_[index(lower)];
    const Node upper = create(whole.parent, whole.first, length);
    Node& eldest = eldest_child_[index(whole.parent + 1)];
    (eldest == lower ? eldest : younger_[find(whole.parent, whole.first)]) = upper;
    eldest_child_[index(upper + 1)] = lower;
    const auto cut = static_cast<std::int32_t>(length);
    runs_[index(lower)] = {
        whole.first + cut, whole.length - cut, upper, whole.depth + cut, kNone, kNone};
    return upper;
  }

  // Where the younger child of `parent` that begins with token i is in the table, or belongs.
  std::size_t find(Node parent, std::int64_t i) const {
    const auto slot = static_cast<std::uint32_t>(samples_.image_slots[i]);
    const auto above = static_cast<std::uint32_t>(parent);
    std::uint64_t hash = mix(static_cast<std::uint64_t>(samples_.ids[i]));
    hash = mix(hash + ((static_cast<std::uint64_t>(above) << 32) | slot));
    const std::size_t mask = younger_.size() - 1;
    for (std::size_t entry = hash & mask;; entry = (entry + 1) & mask) {
      const Node node = younger_[entry];
      if (node == kNone) return entry;
      if (runs_[index(node)].parent == parent && begins_with(node, i)) return entry;
    }
  }

  void grow() {
    std::vector<Node> old(younger_.size() * 2, kNone);
    old.swap(younger_);
    for (const Node node : old) {
      if (node == kNone) continue;
      younger_[find(runs_[index(node)].parent, runs_[index(node)].first)] = node;
    }
  }

  const Samples& samples_;
  std::vector<Run> runs_;
  std::vector<Node> eldest_child_;  // of node n at n + 1; of the whole forest at 0
  std::vector<Node> younger_;       // all other children: open addressing, at most half full
  std::size_t num_younger_ = 0;
};

// Numbers the runs in the order of their first tokens: parents then come before children and elder
// siblings before younger ones. A sample's own runs are the lower end of its path.
void number(const RadixForest& grown, const Samples& samples, Forest& forest) {
  const std::vector<Run>& runs = grown.runs();
  std::vector<Node> renamed(runs.size(), kNone);
  auto next = static_cast<Node>(runs.size());
  for (std::int64_t s = samples.num_samples; s-- > 0;) {
    Node node = forest.last[index(s)];
    while (node != kNone && runs[index(node)].first >= samples.offsets[s]) {
      renamed[index(node)] = --next;
      node = runs[index(node)].parent;
    }
  }
  forest.runs.resize(runs.size());
  for (std::size_t node = 0; node < runs.size(); ++node) {
    Run run = runs[node];
    if (run.parent != kNone) run.parent = renamed[index(run.parent)];
    forest.runs[index(renamed[node])] = run;
  }
  for (Node& last : forest.last) {
    if (last != kNone) last = renamed[index(last)];
  }
}

// Gives each run its rows: a child follows its parent and the subtrees of its elder siblings.
void lay_out(Forest& forest) {
  std::vector<Run>& runs = forest.runs;
  std::vector<std::int32_t> size(runs.size() + 1, 0);  // of run r's subtree at r + 1; of all at 0
  for (std::size_t r = runs.size(); r-- > 0;) {
    size[r + 1] += runs[r].length;
    size[index(runs[r].parent + 1)] += size[r + 1];
  }
  forest.num_rows = size[0];
  std::vector<std::int32_t> next_row(runs.size() + 1, 0);  // of run r's next child at r + 1
  for (std::size_t r = 0; r < runs.size(); ++r) {
    Run& run = runs[r];
    std::int32_t& next = next_row[index(run.parent + 1)];
    run.row = next;
    run.end = next += size[r + 1];
    next_row[r + 1] = run.row + run.length;
  }
}

}  // namespace

Forest merge_prefixes(const Samples& samples, bool share) {
  RadixForest grown(samples);
  Forest forest;
  forest.last.resize(index(samples.num_samples));
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    const std::int64_t first = samples.offsets[s], end = samples.offsets[s + 1];
    const bool empty = first == end;
    forest.last[index(s)] = empty   ? kNone
                            : share ? grown.add(first, end)
                                    : grown.append(kNone, first, end);
  }
  number(grown, samples, forest);
  lay_out(forest);
  return forest;
}

namespace {

// The arrays of a layout, T rows and N tokens; see ForestLayout in the twin.
struct Layout {
  std::int64_t* tokens;       // (T,)
  std::int32_t* image_slots;  // (T,)
  std::int32_t* subtree_end;  // (T,)
  std::int32_t* parent;       // (T,)
  std::int32_t* flat_index;   // (N,)
};

void fill_rows(const Forest& forest, const Samples& samples, const Run& run, const Layout& out) {
  std::copy_n(samples.ids + run.first, run.length, out.tokens + run.row);
  std::copy_n(samples.image_slots + run.first, run.length, out.image_slots + run.row);
  std::fill_n(out.subtree_end + run.row, run.length, run.end);
  for (std::int32_t k = 0; k < run.length; ++k) out.parent[run.row + k] = run.row + k - 1;
  const Run* above = run.parent == kNone ? nullptr : &forest.runs[index(run.parent)];
  out.parent[run.row] = above == nullptr ? -1 : above->row + above->length - 1;
}

void fill_flat_index(const Forest& forest, const Samples& samples, std::int64_t sample,
                     const Layout& out) {
  climb(forest, samples, sample, [&](const Run& run, std::int64_t first) {
    for (std::int32_t k = 0; k < run.length; ++k) out.flat_index[first + k] = run.row + k;
  });
}

// Runs and samples are written independently, in portions of a few dozen.
void fill(const Forest& forest, const Samples& samples, std::int64_t num_threads,
          const Layout& out) {
  constexpr std::int64_t kPortion = 32;
  const auto num_runs = static_cast<std::int64_t>(forest.runs.size());
  const std::int64_t portions_of_runs = (num_runs + kPortion - 1) / kPortion;
  const std::int64_t portions_of_samples = (samples.num_samples + kPortion - 1) / kPortion;
  const auto fill_portion = [&](std::int64_t task, std::int64_t) {
    const bool rows = task < portions_of_runs;
    const std::int64_t first = kPortion * (rows ? task : task - portions_of_runs);
    const std::int64_t end = std::min(first + kPortion, rows ? num_runs : samples.num_samples);
    for (std::int64_t i = first; i < end; ++i) {
      if (rows) {
        fill_rows(forest, samples, forest.runs[index(i)], out);
      } else {
        fill_flat_index(forest, samples, i, out);
      }
    }
  };
  parallel_for(portions_of_runs + portions_of_samples,
               useful_threads(samples.num_tokens, num_threads), fill_portion);
}

}  // namespace

void register_forest(py::module_& m) {
  m.def(
      "build_forest",
      [](const Array<std::int64_t>& ids, const Array<std::int32_t>& image_slots,
         const Array<std::int64_t>& offsets, bool share, std::int64_t num_threads) {
        check_num_threads(num_threads);
        const Samples samples = view_samples(ids, image_slots, offsets);
        Forest forest;
        {
          py::gil_scoped_release release;
          forest = merge_prefixes(samples, share);
        }
        // The arrays of T rows share a block of numpy's own memory: from 4 MB on it asks the kernel
        // for large pages.
        const auto num_rows = static_cast<py::ssize_t>(forest.num_rows);
        constexpr auto kRowBytes = sizeof(std::int64_t) + 3 * sizeof(std::int32_t);
        py::array_t<std::uint8_t> rows(num_rows * static_cast<py::ssize_t>(kRowBytes));
        auto* tokens = reinterpret_cast<std::int64_t*>(rows.mutable_data());
        auto* slots = reinterpret_cast<std::int32_t*>(tokens + num_rows);
        py::array_t<std::int32_t> flat_index(static_cast<py::ssize_t>(samples.num_tokens));
        const Layout out{tokens, slots, slots + num_rows, slots + 2 * num_rows,
                         flat_index.mutable_data()};
        {
          py::gil_scoped_release release;
          fill(forest, samples, num_threads, out);
        }
        const auto view = [&](auto* values) {
          return py::array_t<std::remove_pointer_t<decltype(values)>>(num_rows, values, rows);
        };
        return py::make_tuple(view(out.tokens), view(out.image_slots), view(out.subtree_end),
                              view(out.parent), flat_index);
      },
      py::arg("ids").noconvert(), py::arg("image_slots").noconvert(),
      py::arg("offsets").noconvert(), py::arg("share"), py::arg("num_threads"));
}

}  // namespace fastmpi
