// Samples -> prefix forest -> flat layout. Twin: fastmpi/reference/forest.py.
#pragma once

#include <cstdint>
#include <vector>

#include "samples.h"

namespace fastmpi {

constexpr std::int32_t kNone = -1;

// Tokens that follow one another on every path, and where no sample ends but at the last of them:
// an edge of the radix tree. Its rows follow one another too.
struct Run {
  std::int32_t first;   // the first of them, in the first sample that has them
  std::int32_t length;  // at least 1
  std::int32_t parent;  // the run before it on its path, kNone at a root
  std::int32_t depth;   // tokens above it
  std::int32_t row;     // of its first token, depth first
  std::int32_t end;     // the row after its subtree

  std::int32_t bottom() const { return depth + length; }
};

// The merged prefixes of S samples: T rows in at most 2 S runs. Parents come before children and
// elder siblings before younger ones.
struct Forest {
  std::vector<Run> runs;
  std::vector<std::int32_t> last;  // (S,) run of each sample's last token, kNone where it is empty
  std::int64_t num_rows = 0;       // T
};

// Merges equal prefixes on (token id, image slot) unless `share` is false. Expected time O(N), no
// recursion: depth is bounded by memory alone.
Forest merge_prefixes(const Samples& samples, bool share);

// Calls visit(run, first token of the sample in it) from the last run of a sample up to its root.
template <typename Visit>
void climb(const Forest& forest, const Samples& samples, std::int64_t sample, Visit visit) {
  for (std::int32_t r = forest.last[static_cast<std::size_t>(sample)]; r != kNone;) {
    const Run& run = forest.runs[static_cast<std::size_t>(r)];
    visit(run, samples.offsets[sample] + run.depth);
    r = run.parent;
  }
}

void register_forest(py::module_& m);

}  // namespace fastmpi
