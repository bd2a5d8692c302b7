#include "ranks.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "balance.h"
#include "bins.h"
#include "forest.h"
#include "samples.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

using Indices = std::vector<std::int32_t>;

constexpr std::int32_t kMaxRanks = 65'536;

// Shared runs that are told apart; each of the others, which cost less, counts for every item.
constexpr std::size_t kMaxShared = 16'384;

Indices by_label(const Indices& label, std::int32_t num_labels, Indices& start) {
  start.assign(index(num_labels) + 1, 0);
  for (const std::int32_t l : label) ++start[index(l) + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  Indices order(label.size()), next(start.begin(), start.end() - 1);
  for (std::size_t i = 0; i < label.size(); ++i) {
    order[index(next[index(label[i])]++)] = static_cast<std::int32_t>(i);
  }
  return order;
}

// What the runs of a forest take: tokens, or where `costs` (N,) is not null the sum of their costs.
std::vector<std::int64_t> run_costs(const Forest& forest, const std::int64_t* costs) {
  std::vector<std::int64_t> found;
  found.reserve(forest.runs.size());
  for (const Run& run : forest.runs) {
    const std::int64_t* const first = costs == nullptr ? nullptr : costs + run.first;
    found.push_back(first == nullptr ? run.length
                                     : std::accumulate(first, first + run.length, std::int64_t{0}));
  }
  return found;
}

// Groups of samples as items of a partition: what they take of the runs of a forest.
class ForestItems {
 public:
  ForestItems(const Forest& forest, const std::vector<std::int64_t>& run_costs,
              const Indices& item_of, std::int32_t num_items)
      : forest_(forest),
        run_costs_(run_costs),
        item_of_(item_of),
        owner_(forest.runs.size(), kUnseen) {
    items_.items.resize(index(num_items));
    find_owners();
    number_shared();
    for (std::size_t r = 0; r < owner_.size(); ++r) {
      if (owner_[r] >= 0) items_.items[index(owner_[r])].own += run_costs[r];
    }
    collect(num_items);
  }

  const Items& items() const { return items_; }

  // Some items, depth first: neighbours then share most.
  Indices depth_first(Indices some) const {
    std::stable_sort(some.begin(), some.end(), [&](std::int32_t a, std::int32_t b) {
      return first_row_[index(a)] < first_row_[index(b)];
    });
    return some;
  }

 private:
  static constexpr std::int32_t kUnseen = -1, kSeveral = -2;

  static void own(std::int32_t& owner, std::int32_t item) {
    owner = owner == kUnseen || owner == item ? item : kSeveral;
  }

  void find_owners() {
    for (std::size_t s = 0; s < item_of_.size(); ++s) {
      if (forest_.last[s] != kNone) own(owner_[index(forest_.last[s])], item_of_[s]);
    }
    for (std::size_t r = owner_.size(); r-- > 0;) {
      const std::int32_t parent = forest_.runs[r].parent;
      if (parent != kNone) own(owner_[index(parent)], owner_[r]);
    }
  }

  void number_shared() {
    Indices shared;
    for (std::size_t r = 0; r < owner_.size(); ++r) {
      if (owner_[r] == kSeveral) shared.push_back(static_cast<std::int32_t>(r));
    }
    std::stable_sort(shared.begin(), shared.end(), [&](std::int32_t a, std::int32_t b) {
      return run_costs_[index(a)] > run_costs_[index(b)];
    });
    if (shared.size() > kMaxShared) shared.resize(kMaxShared);
    number_.assign(owner_.size(), -1);
    for (const std::int32_t r : shared) {
      number_[index(r)] = static_cast<std::int32_t>(items_.shared.size());
      items_.shared.push_back(run_costs_[index(r)]);
    }
  }

  // Climbs from every sample until a run that the item has seen.
  void collect(std::int32_t num_items) {
    Indices start, seen(owner_.size(), -1);
    const Indices samples = by_label(item_of_, num_items, start);
    first_row_.assign(index(num_items), 0);
    for (std::int32_t i = 0; i < num_items; ++i) {
      Item& item = items_.items[index(i)];
      for (std::int32_t k = start[index(i)]; k < start[index(i) + 1]; ++k) {
        std::int32_t r = forest_.last[index(samples[index(k)])];
        if (k == start[index(i)] && r != kNone) first_row_[index(i)] = forest_.runs[index(r)].row;
        for (; r != kNone && seen[index(r)] != i; r = forest_.runs[index(r)].parent) {
          seen[index(r)] = i;
          if (owner_[index(r)] != kSeveral) continue;
          if (number_[index(r)] < 0) {
            item.own += run_costs_[index(r)];
          } else {
            item.shared.push_back(number_[index(r)]);
          }
        }
      }
      std::sort(item.shared.begin(), item.shared.end());
    }
  }

  const Forest& forest_;
  const std::vector<std::int64_t>& run_costs_;
  const Indices& item_of_;  // (S,) of each sample
  Indices owner_;           // of each run: the only item that has it, or kSeveral
  Indices number_;          // of each run that several have, in Items::shared
  Indices first_row_;       // of each item: where its first sample ends
  Items items_;
};

// 0, 1, 2 ... for the values in the order of their first appearance; how many there are.
std::pair<Indices, std::int32_t> numbered(const std::int64_t* values, std::int64_t count) {
  std::unordered_map<std::int64_t, std::int32_t> number;
  Indices result;
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(
        number.emplace(values[i], static_cast<std::int32_t>(number.size())).first->second);
  }
  return {std::move(result), static_cast<std::int32_t>(number.size())};
}

// The samples of one group by themselves, copied: their micro-batches, as indices of `all`.
std::vector<std::vector<std::int64_t>> plan_some(const Samples& all, const Indices& some,
                                                 std::int64_t max_tokens, bool share) {
  std::vector<std::int64_t> ids, offsets{0};
  std::vector<std::int32_t> slots;
  for (const std::int32_t s : some) {
    ids.insert(ids.end(), all.ids + all.offsets[s], all.ids + all.offsets[s + 1]);
    slots.insert(slots.end(), all.image_slots + all.offsets[s],
                 all.image_slots + all.offsets[s + 1]);
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
  const Samples samples{ids.data(), slots.data(), offsets.data(), offsets.back(),
                        static_cast<std::int64_t>(some.size())};
  auto plan = plan_microbatches(samples, max_tokens, share);
  for (auto& bin : plan) {
    for (std::int64_t& s : bin) s = some[index(s)];
  }
  return plan;
}

// What stays together in a micro-batch: a group, or where it alone exceeds the budget its pieces.
struct Units {
  Indices of_sample;  // (S,)
  Indices group;      // of each unit
};

Units split_large(const Samples& samples, const Items& groups, const Indices& group_of,
                  std::int64_t max_tokens, bool share) {
  const auto num_groups = static_cast<std::int32_t>(groups.items.size());
  Indices start;
  const Indices members = by_label(group_of, num_groups, start);
  Units units{Indices(group_of.size()), {}};
  for (std::int32_t g = 0; g < num_groups; ++g) {
    const Indices own(members.begin() + start[index(g)], members.begin() + start[index(g) + 1]);
    if (groups.total(index(g)) <= max_tokens) {
      for (const std::int32_t s : own) {
        units.of_sample[index(s)] = static_cast<std::int32_t>(units.group.size());
      }
      units.group.push_back(g);
      continue;
    }
    for (const auto& piece : plan_some(samples, own, max_tokens, share)) {
      for (const std::int64_t s : piece) {
        units.of_sample[index(s)] = static_cast<std::int32_t>(units.group.size());
      }
      units.group.push_back(g);
    }
  }
  return units;
}

// The same number of micro-batches for every rank, as few as it finds: (ranks) partitions.
std::vector<Partition> cut(const Items& units, const std::vector<Indices>& of_rank,
                           std::int64_t max_tokens) {
  std::int64_t fewest = 0;
  for (const Indices& chosen : of_rank) {
    if (chosen.empty()) continue;
    const Partition whole = balance(units, chosen, 1);
    fewest = std::max({fewest, std::int64_t{1}, (whole.largest - 1) / max_tokens + 1});
  }
  for (auto count = static_cast<std::int32_t>(fewest);; ++count) {
    std::vector<Partition> parts;
    for (const Indices& chosen : of_rank) {
      parts.push_back(balance(units, chosen, std::max(count, 1)));
      if (parts.back().largest > max_tokens) break;
    }
    if (parts.empty() || parts.back().largest <= max_tokens) return parts;
  }
}

using Plan =
    std::vector<std::vector<std::vector<std::int64_t>>>;  // (ranks, micro-batches, samples)

// costs: (N,) of each token, or null. They decide over ranks, tokens over micro-batches.
Plan plan_ranks(const Samples& samples, const std::int64_t* groups, const std::int64_t* costs,
                std::int32_t num_ranks, std::int64_t max_tokens, bool share) {
  check_lengths(samples, max_tokens);
  const auto [group_of, num_groups] = numbered(groups, samples.num_samples);
  const Forest forest = merge_prefixes(samples, share);
  const std::vector<std::int64_t> tokens = run_costs(forest, nullptr);
  const ForestItems whole(forest, tokens, group_of, num_groups);
  Indices all(index(num_groups));
  std::iota(all.begin(), all.end(), 0);
  all = whole.depth_first(std::move(all));
  Indices rank_of_group(index(num_groups));
  Partition ranks;
  if (costs == nullptr) {
    ranks = balance(whole.items(), all, num_ranks);
  } else {
    const std::vector<std::int64_t> dear = run_costs(forest, costs);
    ranks = balance(ForestItems(forest, dear, group_of, num_groups).items(), all, num_ranks);
  }
  for (std::size_t i = 0; i < all.size(); ++i) rank_of_group[index(all[i])] = ranks.bin[i];

  const Units units = split_large(samples, whole.items(), group_of, max_tokens, share);
  const ForestItems parts(forest, tokens, units.of_sample,
                          static_cast<std::int32_t>(units.group.size()));
  std::vector<Indices> of_rank(index(num_ranks));
  for (std::size_t u = 0; u < units.group.size(); ++u) {
    of_rank[index(rank_of_group[index(units.group[u])])].push_back(static_cast<std::int32_t>(u));
  }
  for (Indices& chosen : of_rank) chosen = parts.depth_first(std::move(chosen));
  const std::vector<Partition> cuts = cut(parts.items(), of_rank, max_tokens);

  std::int32_t count = 0;
  Indices bin_of_unit(units.group.size());
  for (std::size_t r = 0; r < of_rank.size(); ++r) {
    for (std::size_t i = 0; i < of_rank[r].size(); ++i) {
      bin_of_unit[index(of_rank[r][i])] = cuts[r].bin[i];
      count = std::max(count, cuts[r].bin[i] + 1);
    }
  }
  Plan plan(index(num_ranks), std::vector<std::vector<std::int64_t>>(index(count)));
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    const std::int32_t unit = units.of_sample[index(s)];
    const std::int32_t rank = rank_of_group[index(units.group[index(unit)])];
    plan[index(rank)][index(bin_of_unit[index(unit)])].push_back(s);
  }
  for (auto& bins : plan) {
    std::sort(bins.begin(), bins.end(), [](const auto& a, const auto& b) {
      return a.empty() || b.empty() ? a.size() > b.size() : a.front() < b.front();
    });
  }
  return plan;
}

// Sums of up to 2^31 tokens then fit.
void check_costs(const Array<std::int64_t>& costs, std::int64_t num_tokens) {
  if (costs.ndim() != 1 || (costs.size() != 0 && costs.size() != num_tokens)) {
    throw std::invalid_argument("costs must be 1-D, one per token (" + std::to_string(num_tokens) +
                                ")");
  }
  for (py::ssize_t i = 0; i < costs.size(); ++i) {
    if (costs.at(i) < 0 || costs.at(i) > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("costs[" + std::to_string(i) +
                                  "] = " + std::to_string(costs.at(i)) + " is not in [0, 2^31)");
    }
  }
}

}  // namespace

void register_ranks(py::module_& m) {
  m.def(
      "plan_ranks",
      [](const Array<std::int64_t>& ids, const Array<std::int32_t>& image_slots,
         const Array<std::int64_t>& offsets, const Array<std::int64_t>& groups,
         std::int32_t num_ranks, std::int64_t max_tokens, bool share,
         const Array<std::int64_t>& costs) {
        const Samples samples = view_samples(ids, image_slots, offsets);
        if (groups.ndim() != 1 || groups.size() != samples.num_samples) {
          throw std::invalid_argument("groups must be 1-D, one per sample (" +
                                      std::to_string(samples.num_samples) + ")");
        }
        if (num_ranks < 1) throw std::invalid_argument("num_ranks must be at least 1");
        if (num_ranks > kMaxRanks) {
          throw std::invalid_argument("num_ranks must be at most " + std::to_string(kMaxRanks));
        }
        if (max_tokens < 1) throw std::invalid_argument("max_tokens must be at least 1");
        check_costs(costs, samples.num_tokens);
        const std::int64_t* const group = groups.data();
        const std::int64_t* const cost = costs.size() == 0 ? nullptr : costs.data();
        Plan plan;
        {
          py::gil_scoped_release release;
          plan = plan_ranks(samples, group, cost, num_ranks, max_tokens, share);
        }
        py::list result;
        for (auto& bins : plan) {
          py::list rank;
          for (std::vector<std::int64_t>& bin : bins) rank.append(to_numpy(std::move(bin)));
          result.append(std::move(rank));
        }
        return result;
      },
      py::arg("ids").noconvert(), py::arg("image_slots").noconvert(),
      py::arg("offsets").noconvert(), py::arg("groups").noconvert(), py::arg("num_ranks"),
      py::arg("max_tokens"), py::arg("share"),
      py::arg("costs").noconvert() = Array<std::int64_t>(0));
}

}  // namespace fastmpi
