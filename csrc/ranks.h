// Which rank trains on which samples, in which micro-batch. Twin: fastmpi/reference/bins.py.
#pragma once

#include "arrays.h"

namespace fastmpi {

void register_ranks(py::module_& m);

}  // namespace fastmpi
