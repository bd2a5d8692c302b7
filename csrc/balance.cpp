#include "balance.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "samples.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// What a search may look at, and how near to the mean it need not go on: a thousandth.
constexpr std::int64_t kMaxTrials = 1'000'000;
constexpr std::int64_t kCloseEnough = 1000;

// Items times bins up to which differencing stays below a second.
constexpr std::int64_t kMaxDifferencing = 1 << 27;

// As few items are also searched for the best partition, in at most so many steps.
constexpr std::size_t kFew = 16;
constexpr std::int64_t kMaxNodes = 50'000;

// Bins with items in them. Positions count the chosen items.
class Bins {
 public:
  Bins(const Items& items, const std::vector<std::int32_t>& chosen, std::int32_t num_bins)
      : items_(items),
        chosen_(chosen),
        num_bins_(num_bins),
        load_(index(num_bins), 0),
        members_(index(num_bins)),
        bin_(chosen.size(), -1) {
    std::int32_t used = 0;
    local_.assign(items.shared.size(), -1);
    for (const std::int32_t c : chosen) {
      for (const std::int32_t s : items.items[index(c)].shared) {
        if (local_[index(s)] < 0) local_[index(s)] = used++;
      }
    }
    num_shared_ = used;
    holders_.assign(index(std::int64_t{num_bins} * used), 0);
  }

  const Item& item(std::int32_t position) const {
    return items_.items[index(chosen_[index(position)])];
  }
  std::int32_t num_items() const { return static_cast<std::int32_t>(chosen_.size()); }
  std::int32_t num_bins() const { return num_bins_; }
  std::int32_t bin(std::int32_t position) const { return bin_[index(position)]; }
  std::int64_t load(std::int32_t bin) const { return load_[index(bin)]; }
  const std::vector<std::int32_t>& members(std::int32_t bin) const { return members_[index(bin)]; }

  // What an item adds to a bin.
  std::int64_t added(std::int32_t position, std::int32_t bin) const {
    std::int64_t cost = item(position).own;
    for (const std::int32_t s : item(position).shared) {
      if (holders_[held(bin, s)] == 0) cost += items_.shared[index(s)];
    }
    return cost;
  }

  void put(std::int32_t position, std::int32_t bin) {
    load_[index(bin)] += added(position, bin);
    for (const std::int32_t s : item(position).shared) ++holders_[held(bin, s)];
    bin_[index(position)] = bin;
    members_[index(bin)].push_back(position);
  }

  void take(std::int32_t position) {
    const std::int32_t from = bin(position);
    for (const std::int32_t s : item(position).shared) --holders_[held(from, s)];
    load_[index(from)] -= added(position, from);
    bin_[index(position)] = -1;
    std::vector<std::int32_t>& members = members_[index(from)];
    members.erase(std::find(members.begin(), members.end(), position));
  }

  // The load of an item's bin without it.
  std::int64_t load_without(std::int32_t position) {
    const std::int32_t from = bin(position);
    for (const std::int32_t s : item(position).shared) --holders_[held(from, s)];
    const std::int64_t load_left = load(from) - added(position, from);
    for (const std::int32_t s : item(position).shared) ++holders_[held(from, s)];
    return load_left;
  }

  // The load of an item's bin with another item in its place.
  std::int64_t load_with_instead(std::int32_t position, std::int32_t other) {
    const std::int32_t from = bin(position);
    for (const std::int32_t s : item(position).shared) --holders_[held(from, s)];
    const std::int64_t exchanged = load(from) - added(position, from) + added(other, from);
    for (const std::int32_t s : item(position).shared) ++holders_[held(from, s)];
    return exchanged;
  }

  std::int32_t costliest() const {
    return static_cast<std::int32_t>(std::max_element(load_.begin(), load_.end()) - load_.begin());
  }
  std::int64_t sum() const { return std::accumulate(load_.begin(), load_.end(), std::int64_t{0}); }
  Partition partition() const { return {bin_, load(costliest())}; }

 private:
  std::size_t held(std::int32_t bin, std::int32_t shared) const {
    return index(std::int64_t{bin} * num_shared_ + local_[index(shared)]);
  }

  const Items& items_;
  const std::vector<std::int32_t>& chosen_;
  std::int32_t num_bins_;
  std::int32_t num_shared_ = 0;
  std::vector<std::int32_t> local_;    // of what any item shares: its index among the chosen ones'
  std::vector<std::int32_t> holders_;  // (bins, shared) items of a bin that have it
  std::vector<std::int64_t> load_;
  std::vector<std::vector<std::int32_t>> members_;
  std::vector<std::int32_t> bin_;
};

// The best change that relieves the costliest bin: an item moves to another bin, or changes places
// with one of another bin.
struct Change {
  std::int64_t largest;  // of the two loads after it
  std::int32_t position = -1;
  std::int32_t other = -1;  // the item it changes places with, or -1
  std::int32_t bin = -1;    // where it goes
};

Change best_change(Bins& bins, std::int64_t& trials) {
  const std::int32_t from = bins.costliest();
  Change best{bins.load(from)};
  const auto consider = [&](const Change& change) {
    if (change.largest < best.largest) best = change;
  };
  for (const std::int32_t i : bins.members(from)) {
    const std::int64_t left = bins.load_without(i);
    for (std::int32_t b = 0; b < bins.num_bins(); ++b) {
      if (b == from) continue;
      consider({std::max(left, bins.load(b) + bins.added(i, b)), i, -1, b});
      for (const std::int32_t j : bins.members(b)) {
        const std::int64_t here = bins.load_with_instead(i, j);
        if (here < best.largest) consider({std::max(here, bins.load_with_instead(j, i)), i, j, b});
      }
      trials -= 1 + static_cast<std::int64_t>(bins.members(b).size());
    }
    if (trials < 0) break;
  }
  return best;
}

void improve(Bins& bins, std::int64_t trials) {
  while (trials > 0) {
    const std::int64_t mean = bins.sum() / bins.num_bins();
    const std::int64_t largest = bins.load(bins.costliest());
    if (largest - mean <= mean / kCloseEnough) return;
    const Change change = best_change(bins, trials);
    if (change.position < 0) return;
    const std::int32_t from = bins.bin(change.position);
    bins.take(change.position);
    if (change.other >= 0) bins.take(change.other);
    bins.put(change.position, change.bin);
    if (change.other >= 0) bins.put(change.other, from);
  }
}

// Beginning 1: as if nothing was shared but what all have.
void put_by_differencing(Bins& bins, const Items& items) {
  std::vector<std::int32_t> holders(items.shared.size(), 0);
  for (std::int32_t i = 0; i < bins.num_items(); ++i) {
    for (const std::int32_t s : bins.item(i).shared) ++holders[index(s)];
  }
  std::vector<std::int64_t> costs;
  for (std::int32_t i = 0; i < bins.num_items(); ++i) {
    costs.push_back(bins.item(i).own);
    for (const std::int32_t s : bins.item(i).shared) {
      if (holders[index(s)] < bins.num_items()) costs.back() += items.shared[index(s)];
    }
  }
  const bool many = std::int64_t{bins.num_items()} * bins.num_bins() > kMaxDifferencing;
  const std::vector<std::int32_t> bin =
      (many ? longest_first : largest_differencing)(costs, bins.num_bins());
  for (std::int32_t i = 0; i < bins.num_items(); ++i) bins.put(i, bin[index(i)]);
}

// Beginning 2: neighbours, which share most, stay together. The smallest limit under which filling
// one bin after the other takes no more bins than there are.
class Neighbours {
 public:
  Neighbours(const Items& items, const std::vector<std::int32_t>& chosen)
      : items_(items), chosen_(chosen), seen_(items.shared.size(), -1) {}

  std::vector<std::int32_t> solve(std::int32_t num_bins) {
    std::int64_t low = 0, high = 0;
    for (const std::int32_t c : chosen_) {
      low = std::max(low, items_.total(index(c)));
      high += items_.total(index(c));
    }
    while (low < high) {
      const std::int64_t limit = low + (high - low) / 2;
      fill(limit).back() < num_bins ? high = limit : low = limit + 1;
    }
    return fill(low);
  }

 private:
  std::vector<std::int32_t> fill(std::int64_t limit) {
    std::vector<std::int32_t> bin;
    std::int32_t number = 0;
    std::int64_t load = 0;
    ++fills_;
    for (const std::int32_t c : chosen_) {
      std::int64_t more = added(c, number);
      if (load + more > limit) {
        more = added(c, ++number);
        load = 0;
      }
      load += more;
      for (const std::int32_t s : items_.items[index(c)].shared) {
        seen_[index(s)] = stamp(number);
      }
      bin.push_back(number);
    }
    return bin;
  }

  std::int64_t stamp(std::int32_t bin) const { return (fills_ << 32) + bin; }

  std::int64_t added(std::int32_t c, std::int32_t bin) const {
    std::int64_t cost = items_.items[index(c)].own;
    for (const std::int32_t s : items_.items[index(c)].shared) {
      if (seen_[index(s)] != stamp(bin)) cost += items_.shared[index(s)];
    }
    return cost;
  }

  const Items& items_;
  const std::vector<std::int32_t>& chosen_;
  std::vector<std::int64_t> seen_;  // the last bin that has it, of which fill
  std::int64_t fills_ = 0;
};

// All partitions of a few items, those that cannot be the best left out.
class Search {
 public:
  Search(Bins& bins, const Items& items, Partition best)
      : bins_(bins), best_(std::move(best)), order_(index(bins.num_items())) {
    std::iota(order_.begin(), order_.end(), 0);
    const auto size = [&](std::int32_t i) {
      std::int64_t cost = bins.item(i).own;
      for (const std::int32_t s : bins.item(i).shared) cost += items.shared[index(s)];
      return cost;
    };
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::int32_t a, std::int32_t b) { return size(a) > size(b); });
  }

  Partition solve() {
    place(0, 0);
    return best_;
  }

 private:
  void place(std::size_t next, std::int64_t largest) {
    if (next == order_.size()) {
      best_ = bins_.partition();
      return;
    }
    const std::int32_t i = order_[next];
    for (std::int32_t b = 0; b < bins_.num_bins() && nodes_ > 0; ++b, --nodes_) {
      const std::int64_t load = std::max(largest, bins_.load(b) + bins_.added(i, b));
      const bool empty = bins_.members(b).empty();
      if (load < best_.largest) {
        bins_.put(i, b);
        place(next + 1, load);
        bins_.take(i);
      }
      if (empty) return;  // the other empty bins are the same
    }
  }

  Bins& bins_;
  Partition best_;
  std::vector<std::int32_t> order_;  // large items first
  std::int64_t nodes_ = kMaxNodes;
};

bool shares_in_part(const Items& items, const std::vector<std::int32_t>& chosen) {
  std::vector<std::size_t> holders(items.shared.size(), 0);
  for (const std::int32_t c : chosen) {
    for (const std::int32_t s : items.items[index(c)].shared) ++holders[index(s)];
  }
  return std::any_of(holders.begin(), holders.end(),
                     [&](std::size_t count) { return count > 1 && count < chosen.size(); });
}

}  // namespace

std::int64_t Items::total(std::size_t item) const {
  std::int64_t cost = items[item].own;
  for (const std::int32_t s : items[item].shared) cost += shared[index(s)];
  return cost;
}

Partition balance(const Items& items, const std::vector<std::int32_t>& chosen,
                  std::int32_t num_bins) {
  if (chosen.empty()) return {};
  num_bins = static_cast<std::int32_t>(std::min(index(num_bins), chosen.size()));
  Bins bins(items, chosen, num_bins);
  put_by_differencing(bins, items);
  improve(bins, kMaxTrials);
  Partition best = bins.partition();
  if (shares_in_part(items, chosen)) {
    Bins others(items, chosen, num_bins);
    const std::vector<std::int32_t> bin = Neighbours(items, chosen).solve(num_bins);
    for (std::int32_t i = 0; i < others.num_items(); ++i) others.put(i, bin[index(i)]);
    improve(others, kMaxTrials);
    if (others.partition().largest < best.largest) best = others.partition();
  }
  if (chosen.size() > kFew) return best;
  Bins none(items, chosen, num_bins);
  return Search(none, items, std::move(best)).solve();
}

void register_balance(py::module_& m) {
  m.def(
      "balanced_bins",
      [](const Array<std::int64_t>& costs, std::int32_t num_bins) {
        if (costs.ndim() != 1) throw std::invalid_argument("costs must be 1-D");
        if (num_bins < 1) throw std::invalid_argument("num_bins must be at least 1");
        check_num_tokens(costs.size());
        Items items;
        std::int64_t sum = 0;
        for (py::ssize_t i = 0; i < costs.size(); ++i) {
          const std::int64_t cost = costs.at(i);
          if (cost < 0 || cost > std::numeric_limits<std::int64_t>::max() / 2 - sum) {
            throw std::invalid_argument("costs[" + std::to_string(i) +
                                        "] = " + std::to_string(cost) +
                                        " is negative, or the sum of costs "
                                        "too large");
          }
          sum += cost;
          items.items.push_back({cost, {}});
        }
        std::vector<std::int32_t> all(items.items.size());
        std::iota(all.begin(), all.end(), 0);
        Partition found;
        {
          py::gil_scoped_release release;
          found = balance(items, all, num_bins);
        }
        return to_numpy(std::move(found.bin));
      },
      py::arg("costs").noconvert(), py::arg("num_bins"));
}

}  // namespace fastmpi
