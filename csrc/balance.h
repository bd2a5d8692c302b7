// Items into a fixed number of bins, as evenly as it goes. Twin: fastmpi/reference/bins.py.
#pragma once

#include <cstdint>
#include <vector>

#include "arrays.h"

namespace fastmpi {

// Something that goes into a bin as a whole. Items of one bin pay once for what they share.
struct Item {
  std::int64_t own = 0;              // cost of what no other item has
  std::vector<std::int32_t> shared;  // what others have too, ascending indices of Items::shared
};

struct Items {
  std::vector<Item> items;           // items that share lie near one another
  std::vector<std::int64_t> shared;  // cost of everything that several items have

  // The cost of an item in a bin of its own.
  std::int64_t total(std::size_t item) const;
};

struct Partition {
  std::vector<std::int32_t> bin;  // of each chosen item
  std::int64_t largest = 0;       // cost of the costliest bin
};

// The bin of each cost: each in turn, the largest first, into the bin with least in it.
std::vector<std::int32_t> longest_first(const std::vector<std::int64_t>& costs,
                                        std::int32_t num_bins);

// The same by largest differencing (Karmarkar and Karp): far more even, in up to costs x bins
// steps.
std::vector<std::int32_t> largest_differencing(const std::vector<std::int64_t>& costs,
                                               std::int32_t num_bins);

// Keeps the costliest bin as cheap as it finds: from the better of several beginnings, by moves and
// exchanges. Deterministic.
Partition balance(const Items& items, const std::vector<std::int32_t>& chosen,
                  std::int32_t num_bins);

void register_balance(py::module_& m);

}  // namespace fastmpi
