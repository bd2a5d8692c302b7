#include "forest.h"

#include <cstddef>
#include <utility>

namespace fastmpi {

namespace {

using Node = std::int32_t;
constexpr Node kNone = -1;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// The finaliser of splitmix64: every bit of the input moves every bit of the output.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// The forest while it grows. Nodes are numbered in the order of their first appearance, so parents
// come before children and elder siblings before younger ones: all that the layout needs.
class Trie {
 public:
  explicit Trie(const Samples& samples)
      : samples_(samples), eldest_child_(1, kNone), younger_(64, kNone) {}

  // The child of `parent` (kNone: a root) that shows token i; made where it is missing. Most nodes
  // have one child, found without hashing.
  Node child(Node parent, std::int64_t i) {
    const Node eldest = eldest_child_[index(parent + 1)];
    if (eldest == kNone) {
      const Node node = append(parent, i);
      eldest_child_[index(parent + 1)] = node;
      return node;
    }
    return shows(eldest, i) ? eldest : younger_child(parent, i);
  }

  Node append(Node parent, std::int64_t i) {
    const auto node = static_cast<Node>(parent_.size());
    token_.push_back(static_cast<std::int32_t>(i));
    parent_.push_back(parent);
    eldest_child_.push_back(kNone);
    return node;
  }

  const std::vector<std::int32_t>& token() const { return token_; }
  const std::vector<Node>& parent() const { return parent_; }

 private:
  bool shows(Node node, std::int64_t i) const {
    const std::int32_t j = token_[index(node)];
    return samples_.ids[j] == samples_.ids[i] && samples_.image_slots[j] == samples_.image_slots[i];
  }

  Node younger_child(Node parent, std::int64_t i) {
    std::size_t entry = find(parent, i);
    if (younger_[entry] == kNone) {
      if (2 * ++num_younger_ > younger_.size()) {
        grow();
        entry = find(parent, i);
      }
      younger_[entry] = append(parent, i);
    }
    return younger_[entry];
  }

  // Where the younger child of `parent` that shows token i is in the table, or belongs.
  std::size_t find(Node parent, std::int64_t i) const {
    const auto slot = static_cast<std::uint32_t>(samples_.image_slots[i]);
    const auto above = static_cast<std::uint32_t>(parent);
    std::uint64_t hash = mix(static_cast<std::uint64_t>(samples_.ids[i]));
    hash = mix(hash + ((static_cast<std::uint64_t>(above) << 32) | slot));
    const std::size_t mask = younger_.size() - 1;
    for (std::size_t entry = hash & mask;; entry = (entry + 1) & mask) {
      const Node node = younger_[entry];
      if (node == kNone || (parent_[index(node)] == parent && shows(node, i))) return entry;
    }
  }

  void grow() {
    std::vector<Node> old(younger_.size() * 2, kNone);
    old.swap(younger_);
    for (const Node node : old) {
      if (node != kNone) younger_[find(parent_[index(node)], token_[index(node)])] = node;
    }
  }

  const Samples& samples_;
  std::vector<std::int32_t> token_;  // a token of the samples that the node stands for
  std::vector<Node> parent_;
  std::vector<Node> eldest_child_;  // of node n at n + 1; of the whole forest at 0
  std::vector<Node> younger_;       // all other children: open addressing, at most half full
  std::size_t num_younger_ = 0;
};

// Grows the trie, and returns the node of every original token.
std::vector<Node> merge(Trie& trie, const Samples& samples, bool share) {
  std::vector<Node> node_of(index(samples.num_tokens));
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    Node node = kNone;
    for (std::int64_t i = samples.offsets[s]; i < samples.offsets[s + 1]; ++i) {
      node = share ? trie.child(node, i) : trie.append(node, i);
      node_of[index(i)] = node;
    }
  }
  return node_of;
}

std::vector<std::int32_t> subtree_sizes(const std::vector<Node>& parent) {
  std::vector<std::int32_t> size(parent.size(), 1);
  for (std::size_t node = parent.size(); node-- > 0;) {
    if (parent[node] != kNone) size[index(parent[node])] += size[node];
  }
  return size;
}

// Depth-first row of each node: a child follows its parent and the subtrees of its elder siblings.
std::vector<std::int32_t> depth_first_rows(const std::vector<Node>& parent,
                                           const std::vector<std::int32_t>& size) {
  std::vector<std::int32_t> row(parent.size());
  std::vector<std::int32_t> next_row(parent.size() + 1, 0);  // of node n's next child at n + 1
  for (std::size_t node = 0; node < parent.size(); ++node) {
    std::int32_t& next = next_row[index(parent[node] + 1)];
    row[node] = next;
    next += size[node];
    next_row[node + 1] = row[node] + 1;
  }
  return row;
}

}  // namespace

ForestLayout build_forest(const Samples& samples, bool share) {
  Trie trie(samples);
  std::vector<Node> node_of = merge(trie, samples, share);
  const std::vector<Node>& parent = trie.parent();
  const std::vector<std::int32_t> size = subtree_sizes(parent);
  const std::vector<std::int32_t> row = depth_first_rows(parent, size);

  const std::size_t num_rows = parent.size();
  ForestLayout layout;
  layout.tokens.resize(num_rows);
  layout.image_slots.resize(num_rows);
  layout.subtree_end.resize(num_rows);
  layout.parent.resize(num_rows);
  for (std::size_t node = 0; node < num_rows; ++node) {
    const std::size_t r = index(row[node]);
    layout.tokens[r] = samples.ids[trie.token()[node]];
    layout.image_slots[r] = samples.image_slots[trie.token()[node]];
    layout.subtree_end[r] = row[node] + size[node];
    layout.parent[r] = parent[node] == kNone ? -1 : row[index(parent[node])];
  }
  for (Node& node : node_of) node = row[index(node)];
  layout.flat_index = std::move(node_of);
  return layout;
}

void register_forest(py::module_& m) {
  m.def(
      "build_forest",
      [](const Array<std::int64_t>& ids, const Array<std::int32_t>& image_slots,
         const Array<std::int64_t>& offsets, bool share) {
        const Samples samples = view_samples(ids, image_slots, offsets);
        ForestLayout layout;
        {
          py::gil_scoped_release release;
          layout = build_forest(samples, share);
        }
        return py::make_tuple(
            to_numpy(std::move(layout.tokens)), to_numpy(std::move(layout.image_slots)),
            to_numpy(std::move(layout.subtree_end)), to_numpy(std::move(layout.parent)),
            to_numpy(std::move(layout.flat_index)));
      },
      py::arg("ids").noconvert(), py::arg("image_slots").noconvert(),
      py::arg("offsets").noconvert(), py::arg("share"));
}

}  // namespace fastmpi
