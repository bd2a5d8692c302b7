// Placeholder tokens and the images they show. Twin: fastmpi/reference/tokens.py.
#pragma once

#include "arrays.h"

namespace fastmpi {

void register_tokens(py::module_& m);

}  // namespace fastmpi
