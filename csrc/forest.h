// Samples -> prefix forest -> flat layout. Twin: fastmpi/reference/forest.py.
#pragma once

#include <cstdint>
#include <vector>

#include "samples.h"

namespace fastmpi {

// T rows in depth-first order; query q sees key k iff k <= q < subtree_end[k].
struct ForestLayout {
  std::vector<std::int64_t> tokens;       // (T,)
  std::vector<std::int32_t> image_slots;  // (T,)
  std::vector<std::int32_t> subtree_end;  // (T,)
  std::vector<std::int32_t> parent;       // (T,) row before it on its path, -1 at a root
  std::vector<std::int32_t> flat_index;   // (N,) row of every original token

  std::int64_t num_rows() const { return static_cast<std::int64_t>(tokens.size()); }
};

// Merges equal prefixes on (token id, image slot) unless `share` is false. Expected time O(N), no
// recursion: depth is bounded by memory alone.
ForestLayout build_forest(const Samples& samples, bool share);

void register_forest(py::module_& m);

}  // namespace fastmpi
