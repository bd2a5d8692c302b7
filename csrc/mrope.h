// Positions of every token in its own unshared sample. Twin: fastmpi/reference/positions.py.
#pragma once

#include "samples.h"

namespace fastmpi {

void register_mrope(py::module_& m);

}  // namespace fastmpi
