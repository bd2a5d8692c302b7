// Largest differencing: the two partial partitions that are most uneven are laid upon one another,
// the large bins of the one upon the small bins of the other, until one partition is left.
#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "balance.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// A bin of a partial partition; its items are a linked list.
struct Bin {
  std::int64_t load;
  std::int32_t first, last;
};

bool larger(const Bin& a, const Bin& b) { return a.load > b.load; }

class Differencing {
 public:
  Differencing(const std::vector<std::int64_t>& costs, std::int32_t num_bins)
      : costs_(costs),
        num_bins_(index(num_bins)),
        next_(costs.size(), -1),
        partitions_(costs.size()),
        single_(costs.size()) {
    std::iota(single_.begin(), single_.end(), 0);
    std::stable_sort(single_.begin(), single_.end(), [&](std::int32_t a, std::int32_t b) {
      return costs[index(a)] > costs[index(b)];
    });
  }

  std::vector<std::int32_t> solve() {
    std::vector<std::int32_t> bin_of(costs_.size());
    if (costs_.empty()) return bin_of;
    for (std::size_t left = costs_.size(); left > 1; --left) {
      const std::int32_t a = pop(), b = pop();
      lay_upon(partitions_[index(a)], partitions_[index(b)]);
      push(a);
    }
    std::int32_t number = 0;
    for (const Bin& bin : partitions_[index(pop())]) {
      for (std::int32_t i = bin.first; i >= 0; i = next_[index(i)]) bin_of[index(i)] = number;
      ++number;
    }
    return bin_of;
  }

 private:
  using Partial = std::vector<Bin>;  // the bins that are not empty, largest first

  // How uneven a partition is, and the number of its first item: of equals, the first is taken.
  using Uneven = std::pair<std::int64_t, std::int32_t>;

  void push(std::int32_t partition) {
    const Partial& bins = partitions_[index(partition)];
    const std::int64_t least = bins.size() < num_bins_ ? 0 : bins.back().load;
    merged_.emplace(bins.front().load - least, -partition);
  }

  // The most uneven partition: single items wait in their order, merged ones in a heap.
  std::int32_t pop() {
    if (next_single_ < single_.size()) {
      const std::int32_t item = single_[next_single_];
      const std::int64_t cost = num_bins_ > 1 ? costs_[index(item)] : 0;
      if (merged_.empty() || merged_.top() < Uneven{cost, -item}) {
        ++next_single_;
        partitions_[index(item)].push_back({costs_[index(item)], item, item});
        return item;
      }
    }
    const std::int32_t partition = -merged_.top().second;
    merged_.pop();
    return partition;
  }

  // Empties b.
  void lay_upon(Partial& a, Partial& b) {
    const std::size_t own = a.size(), empty = num_bins_ - own;  // empty: they take b's largest
    for (std::size_t j = 0; j < std::min(empty, b.size()); ++j) a.push_back(b[j]);
    for (std::size_t j = empty; j < b.size(); ++j) join(a[num_bins_ - 1 - j], b[j]);
    const auto changed = a.end() - static_cast<std::ptrdiff_t>(b.size());
    std::stable_sort(changed, a.end(), larger);
    if (changed != a.begin() && larger(*changed, *(changed - 1))) {
      std::inplace_merge(a.begin(), changed, a.end(), larger);
    }
    Partial().swap(b);
  }

  void join(Bin& bin, const Bin& other) {
    bin.load += other.load;
    next_[index(bin.last)] = other.first;
    bin.last = other.last;
  }

  const std::vector<std::int64_t>& costs_;
  std::size_t num_bins_;
  std::vector<std::int32_t> next_;    // item after this one in its bin
  std::vector<Partial> partitions_;   // of their first item
  std::vector<std::int32_t> single_;  // items, largest first
  std::size_t next_single_ = 0;
  std::priority_queue<Uneven> merged_;
};

}  // namespace

std::vector<std::int32_t> longest_first(const std::vector<std::int64_t>& costs,
                                        std::int32_t num_bins) {
  std::vector<std::int32_t> order(costs.size()), bin_of(costs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return costs[index(a)] > costs[index(b)];
  });
  using Load = std::pair<std::int64_t, std::int32_t>;  // and its bin
  std::priority_queue<Load, std::vector<Load>, std::greater<Load>> lightest;
  for (std::int32_t b = 0; b < num_bins; ++b) lightest.emplace(0, b);
  for (const std::int32_t i : order) {
    const auto [load, bin] = lightest.top();
    lightest.pop();
    lightest.emplace(load + costs[index(i)], bin);
    bin_of[index(i)] = bin;
  }
  return bin_of;
}

std::vector<std::int32_t> largest_differencing(const std::vector<std::int64_t>& costs,
                                               std::int32_t num_bins) {
  return Differencing(costs, num_bins).solve();
}

}  // namespace fastmpi
