// The only PYBIND11_MODULE: each topic registers its own functions.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) { m.doc() = "Native ops of fastmpi: numpy in, numpy out. Use fastmpi.ops."; }
