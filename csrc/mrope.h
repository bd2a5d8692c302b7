// Positions of every token in its own unshared sample. Twin: fastmpi/reference/positions.py.
#pragma once

#include <cstdint>
#include <vector>

#include "samples.h"

namespace fastmpi {

struct Positions {
  std::vector<std::int32_t> axes;    // (3, N): temporal, height, width
  std::vector<std::int32_t> within;  // (N,) index of a placeholder inside its image, 0 for text
};

struct Grid {
  std::int32_t rows, columns;  // of merged patches
};

// Both expect one grid (or token count) per image slot and throw std::invalid_argument where a run
// of placeholders is no whole number of its image.
Positions mrope_positions(const Samples& samples, const std::vector<Grid>& grids);
Positions linear_positions(const Samples& samples, const std::int32_t* tokens_per_image,
                           std::int64_t num_images);

void register_mrope(py::module_& m);

}  // namespace fastmpi
