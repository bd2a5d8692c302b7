// The only PYBIND11_MODULE: each topic registers its own functions.
#include <pybind11/pybind11.h>

#include "balance.h"
#include "bins.h"
#include "forest.h"
#include "hash.h"
#include "image_bindings.h"
#include "mrope.h"
#include "ranks.h"
#include "tokens.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native ops of fastmpi: numpy in, numpy out. Use them through fastmpi.ops.";
  fastmpi::register_forest(m);
  fastmpi::register_mrope(m);
  fastmpi::register_bins(m);
  fastmpi::register_balance(m);
  fastmpi::register_ranks(m);
  fastmpi::register_tokens(m);
  fastmpi::register_images(m);
  fastmpi::register_hash(m);
}
