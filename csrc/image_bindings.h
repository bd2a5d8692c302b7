#pragma once

#include "arrays.h"

namespace fastmpi {

void register_images(py::module_& m);

}  // namespace fastmpi
