// Many pictures of any sizes, resized at once on threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "image_resize.h"

namespace fastmpi {

// A part of a resized picture.
struct Window {
  std::int64_t top, left;
  Size size;
};

// Takes row y of the window. Rows come from the top down in bands, each on one thread.
using RowWriter = std::function<void(std::int64_t y, const PlanarRow& row, Scratch& scratch)>;

struct ResizeJob {
  Picture picture;
  Size size;      // of the whole resized picture
  Window window;  // what is made of it
  Order order;
  std::int64_t unit;  // rows that one thread writes together; divides the window's height
  RowWriter write;
};

void resize_all(const std::vector<ResizeJob>& jobs, std::int64_t num_threads);

}  // namespace fastmpi
