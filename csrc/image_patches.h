// Batches of decoded pictures -> the pixels a vision tower takes: patches in the order of the
// Qwen-VL families, or crops of one size as CLIP takes them. Twin: fastmpi/reference/images.py.
#pragma once

#include <cstdint>
#include <vector>

#include "image_resize.h"

namespace fastmpi {

// How the Qwen-VL families cut a picture: patches of patch x patch pixels, in blocks of
// merge x merge that become one token; the resized area lies between min_pixels and max_pixels.
struct PatchRule {
  std::int64_t patch, merge, min_pixels, max_pixels;

  std::int64_t factor() const { return patch * merge; }
};

// CLIP's rule: the shortest edge resized to `shortest_edge`, then a crop from the centre.
struct CropRule {
  std::int64_t shortest_edge;
  Size crop;
};

struct Options {
  bool pillow_13;  // resize as Pillow does since version 13; see pillow_order()
  std::int64_t num_threads;
};

// The size that a picture is resized to, as transformers' smart_resize rounds it. Throws
// std::invalid_argument for an empty picture, one more than 200 times as long as wide, and where a
// side would be zero or longer than kMaxSide.
Size smart_resize(Size picture, const PatchRule& rule);

// Values of one channel's bytes, and how often a patch repeats its frame. Null tables: the bytes
// themselves. `bytes` is the size of a value: 1, 2 or 4.
struct Values {
  const std::uint8_t* table;  // (channels, 256) values
  std::int64_t bytes;
  std::int64_t frames;
};

// The size before the crop, as transformers rounds it; the crop must lie inside.
Size crop_size(Size picture, const CropRule& rule);

// sizes: smart_resize of each picture. out: (all patches, channels * frames * patch * patch).
void image_patches(const std::vector<Picture>& pictures, const std::vector<Size>& sizes,
                   const PatchRule& rule, const Values& values, const Options& options,
                   std::uint8_t* out);
// out: (pictures, channels, crop height, crop width).
void image_crops(const std::vector<Picture>& pictures, const CropRule& rule, const Values& values,
                 const Options& options, std::uint8_t* out);
// out: (height, width, channels).
void resize(const Picture& picture, Size size, const Options& options, std::uint8_t* out);

// The values of bytes that image_patches or image_crops wrote: bytes (rows, channels,
// frame_values) -> out (rows, channels, frames, frame_values).
void expand(const std::uint8_t* bytes, std::int64_t rows, std::int64_t frame_values,
            const Values& values, std::int64_t num_threads, std::uint8_t* out);
}  // namespace fastmpi
