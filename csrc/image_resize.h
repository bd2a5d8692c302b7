// Antialiased bicubic resize of 8-bit pictures, bit for bit as Pillow's: weights normalised in
// double and rounded to 22 bits, along rows first, 8 bits between the two passes.
// Twin: fastmpi/reference/images.py.
#pragma once

#include <cstdint>
#include <vector>

#include "image_kernels.h"

namespace fastmpi {

constexpr std::int64_t kChannels = 3;
constexpr std::int64_t kMaxSide = 1 << 20;  // of a picture, before and after

// Decoded pixels, row after row. pixel_bytes is 3 (RGB) or 4 (RGBX, as Pillow keeps them).
struct Picture {
  const std::uint8_t* pixels;
  std::int64_t height, width, pixel_bytes;

  const std::uint8_t* row(std::int64_t y) const { return pixels + y * width * pixel_bytes; }
};

struct Size {
  std::int64_t height, width;
};

// How the samples [begin, end) of a resized side are made: sample i is the sum of count[i] inputs
// from first[i] on, with the weights at weights[i * taps].
struct Filter {
  std::int64_t taps;
  std::vector<std::int64_t> first, count;
  std::vector<std::int32_t> weights;

  std::int64_t size() const { return static_cast<std::int64_t>(first.size()); }
  std::int64_t last(std::int64_t i) const {
    return first[static_cast<std::size_t>(i)] + count[static_cast<std::size_t>(i)];
  }
};

Filter bicubic_filter(std::int64_t input, std::int64_t output, std::int64_t begin,
                      std::int64_t end);

// Three planes of one resized row, each `stride` bytes after the one before.
struct PlanarRow {
  const std::uint8_t* red;
  std::int64_t stride;

  const std::uint8_t* channel(std::int64_t c) const { return red + c * stride; }
};

// Memory of one worker, kept from picture to picture.
struct Scratch {
  std::vector<std::uint8_t> columns, strip, blended, rows, block;
  std::vector<const std::uint8_t*> column_at, row_at;
};

// The pass that goes first; the bytes between the passes are rounded, so the last bits tell.
enum class Order { kHorizontalFirst, kVerticalFirst };

// The order that Pillow takes: along rows first, but since version 13 the other way round where
// the height shrinks by more than twice what the width does.
Order pillow_order(Size picture, Size resized, bool since_13);

// The resized rows [begin, end) of one picture, from the top down, in one pass over the picture:
// what lies between the two passes stays in the cache.
class Resizer {
 public:
  Resizer(const Picture& picture, const Filter& horizontal, const Filter& vertical, Order order,
          std::int64_t begin, std::int64_t end, Scratch& scratch);

  // Row y of the vertical filter, to be asked for in turn. Valid until the next call.
  PlanarRow row(std::int64_t y);

 private:
  PlanarRow horizontal_first(std::int64_t y);
  PlanarRow vertical_first(std::int64_t y);
  void resize_along_x(const std::uint8_t* const* source, std::int64_t first_row);
  void blend_along_y(std::int64_t y, std::int64_t n, std::uint8_t* out) const;
  std::uint8_t* ring_row(std::int64_t y) const;

  const ImageKernels& kernels_ = image_kernels();
  const Picture& picture_;
  const Filter& horizontal_;
  const Filter& vertical_;
  Scratch& scratch_;
  Order order_;
  std::int64_t end_;
  std::int64_t stride_;  // of a plane
  std::int64_t ring_;    // rows, resized along x, that are kept
  std::int64_t ready_;   // the first row that is not resized along x yet
};

}  // namespace fastmpi
