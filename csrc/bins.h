// Which samples share a micro-batch. Twin: fastmpi/reference/bins.py.
#pragma once

#include <cstdint>
#include <vector>

#include "samples.h"

namespace fastmpi {

// Throws std::invalid_argument where one sample alone is longer than the budget.
void check_lengths(const Samples& samples, std::int64_t max_tokens);

// Indices of the samples of each micro-batch, whose forest has at most `max_tokens` rows. Throws
// std::invalid_argument where one sample alone is longer.
std::vector<std::vector<std::int64_t>> plan_microbatches(const Samples& samples,
                                                         std::int64_t max_tokens, bool share);

void register_bins(py::module_& m);

}  // namespace fastmpi
