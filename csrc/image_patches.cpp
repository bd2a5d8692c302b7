#include "image_patches.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "image_batch.h"
#include "threads.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

double as_double(std::int64_t n) { return static_cast<double>(n); }

std::string text(Size size) {
  return std::to_string(size.height) + " x " + std::to_string(size.width);
}

void check_sides(Size picture, Size resized) {
  const auto good = [](std::int64_t side) { return side >= 1 && side <= kMaxSide; };
  if (good(resized.height) && good(resized.width)) return;
  throw std::invalid_argument("a picture of " + text(picture) + " would become " + text(resized) +
                              "; sides must be in 1.." + std::to_string(kMaxSide));
}

// The multiple of `factor` nearest to `side`: Python's round() takes the even one of two.
std::int64_t nearest_multiple(std::int64_t side, std::int64_t factor) {
  return static_cast<std::int64_t>(std::nearbyint(as_double(side) / as_double(factor))) * factor;
}

ResizeJob job(const Picture& picture, Size size, const Window& window, const Options& options,
              std::int64_t unit, RowWriter write) {
  const Order order = pillow_order({picture.height, picture.width}, size, options.pillow_13);
  return {picture, size, window, order, unit, std::move(write)};
}

// The values of n bytes of one channel: `bytes` themselves or what the table says of them.
template <typename T>
void look_up(const std::uint8_t* bytes, std::int64_t n, const T* table, T* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = table[bytes[i]];
}

// Values of one channel of a picture, or of a part of it.
void write_values(const Values& values, std::int64_t channel, const std::uint8_t* bytes,
                  std::int64_t n, std::uint8_t* out) {
  if (values.bytes == 1) {
    std::memcpy(out, bytes, index(n));
    return;
  }
  const std::uint8_t* table = values.table + channel * 256 * values.bytes;
  if (values.bytes == 2) {
    look_up(bytes, n, reinterpret_cast<const std::uint16_t*>(table),
            reinterpret_cast<std::uint16_t*>(out));
  } else {
    look_up(bytes, n, reinterpret_cast<const std::uint32_t*>(table),
            reinterpret_cast<std::uint32_t*>(out));
  }
}

// The values of patches: bytes (rows, channels, frame_values) -> out (rows, channels, frames,
// frame_values).
void expand_rows(const Values& values, const std::uint8_t* bytes, std::int64_t rows,
                 std::int64_t frame_values, std::uint8_t* out) {
  const std::int64_t frame_bytes = frame_values * values.bytes;
  for (std::int64_t i = 0; i < rows * kChannels; ++i, bytes += frame_values) {
    write_values(values, i % kChannels, bytes, frame_values, out);
    for (std::int64_t frame = 1; frame < values.frames; ++frame) {
      std::memcpy(out + frame * frame_bytes, out, index(frame_bytes));
    }
    out += values.frames * frame_bytes;
  }
}

// One line of every patch of a row of patches, side by side in `line`, to where it belongs: runs
// of `merge` patches lie side by side, `merge` such runs make a block. N: bytes of a patch's line,
// or 0 where the compiler does not know them.
template <std::size_t N>
void scatter(const std::uint8_t* line, const PatchRule& rule, std::int64_t columns,
             std::uint8_t* out) {
  const std::size_t n = N != 0 ? N : index(rule.patch);
  const std::int64_t merge = rule.merge, patch_bytes = kChannels * rule.patch * rule.patch;
  for (std::int64_t block = 0; block < columns; block += merge) {
    for (std::int64_t i = 0; i < merge; ++i, line += n) {
      std::memcpy(out + (block * merge + i) * patch_bytes, line, n);
    }
  }
}

// Writes resized rows into the patches of one picture: (rows of blocks, columns of blocks, merge,
// merge, channel, frame, patch, patch).
struct PatchWriter {
  PatchRule rule;
  Values values;
  std::int64_t columns;  // of patches
  std::uint8_t* out;

  void operator()(std::int64_t y, const PlanarRow& row, Scratch& scratch) const {
    const std::int64_t factor = rule.factor();
    const std::int64_t frame_values = rule.patch * rule.patch;
    const std::int64_t block_patches = columns * rule.merge;  // of one row of blocks
    const std::int64_t block_values = block_patches * kChannels * frame_values;
    std::uint8_t* block = out + y / factor * block_values * values.frames * values.bytes;
    if (values.bytes == 1) {
      write_bytes(y % factor, row, block);
      return;
    }
    // Bytes first, values when a row of blocks is complete: a value is written once, in order.
    if (scratch.block.size() < index(block_values)) scratch.block.resize(index(block_values));
    write_bytes(y % factor, row, scratch.block.data());
    if (y % factor == factor - 1) {
      expand_rows(values, scratch.block.data(), block_patches, frame_values, block);
    }
  }

  void write_bytes(std::int64_t y, const PlanarRow& row, std::uint8_t* block) const {
    const std::int64_t frame_bytes = rule.patch * rule.patch;
    const std::int64_t run_bytes = rule.merge * kChannels * frame_bytes;
    std::uint8_t* at = block + y / rule.patch * run_bytes + y % rule.patch * rule.patch;
    for (std::int64_t c = 0; c < kChannels; ++c, at += frame_bytes) {
      switch (rule.patch) {
        case 14:
          scatter<14>(row.channel(c), rule, columns, at);
          break;
        case 16:
          scatter<16>(row.channel(c), rule, columns, at);
          break;
        default:
          scatter<0>(row.channel(c), rule, columns, at);
      }
    }
  }
};

}  // namespace

Size smart_resize(Size picture, const PatchRule& rule) {
  const auto [height, width] = picture;
  const std::int64_t factor = rule.factor();
  check_sides(picture, picture);
  const double aspect = as_double(std::max(height, width)) / as_double(std::min(height, width));
  if (aspect > 200) {
    throw std::invalid_argument("a picture of " + text(picture) +
                                " is more than 200 times as long as wide");
  }
  Size size{nearest_multiple(height, factor), nearest_multiple(width, factor)};
  const double area = as_double(height * width);
  if (size.height * size.width > rule.max_pixels) {
    const double beta = std::sqrt(area / as_double(rule.max_pixels));
    const auto shrunk = [&](std::int64_t side) {
      const double multiples = std::floor(as_double(side) / beta / as_double(factor));
      return std::max(factor, static_cast<std::int64_t>(multiples) * factor);
    };
    size = {shrunk(height), shrunk(width)};
  } else if (size.height * size.width < rule.min_pixels) {
    const double beta = std::sqrt(as_double(rule.min_pixels) / area);
    const auto grown = [&](std::int64_t side) {
      const double multiples = std::ceil(as_double(side) * beta / as_double(factor));
      return static_cast<std::int64_t>(multiples) * factor;
    };
    size = {grown(height), grown(width)};
  }
  check_sides(picture, size);
  return size;
}

Size crop_size(Size picture, const CropRule& rule) {
  check_sides(picture, picture);
  const auto [height, width] = picture;
  const std::int64_t shorter = std::min(height, width), longer = std::max(height, width);
  const auto resized =
      static_cast<std::int64_t>(as_double(rule.shortest_edge * longer) / as_double(shorter));
  const Size size =
      width <= height ? Size{resized, rule.shortest_edge} : Size{rule.shortest_edge, resized};
  check_sides(picture, size);
  return size;
}

void image_patches(const std::vector<Picture>& pictures, const std::vector<Size>& sizes,
                   const PatchRule& rule, const Values& values, const Options& options,
                   std::uint8_t* out) {
  std::vector<ResizeJob> jobs;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    const Size size = sizes[i];
    const PatchWriter writer{rule, values, size.width / rule.patch, out};
    jobs.push_back(job(pictures[i], size, {0, 0, size}, options, rule.factor(), writer));
    out += size.height * size.width * kChannels * values.frames * values.bytes;
  }
  resize_all(jobs, options.num_threads);
}

void image_crops(const std::vector<Picture>& pictures, const CropRule& rule, const Values& values,
                 const Options& options, std::uint8_t* out) {
  std::vector<ResizeJob> jobs;
  const Size crop = rule.crop;
  const std::int64_t plane_bytes = crop.height * crop.width * values.bytes;
  for (const Picture& picture : pictures) {
    const Size size = crop_size({picture.height, picture.width}, rule);
    const Window window{(size.height - crop.height) / 2, (size.width - crop.width) / 2, crop};
    const auto write = [=](std::int64_t y, const PlanarRow& row, Scratch&) {
      for (std::int64_t c = 0; c < kChannels; ++c) {
        write_values(values, c, row.channel(c), crop.width,
                     out + c * plane_bytes + y * crop.width * values.bytes);
      }
    };
    jobs.push_back(job(picture, size, window, options, 1, write));
    out += kChannels * plane_bytes;
  }
  resize_all(jobs, options.num_threads);
}

void resize(const Picture& picture, Size size, const Options& options, std::uint8_t* out) {
  const auto write = [=](std::int64_t y, const PlanarRow& row, Scratch&) {
    std::uint8_t* pixels = out + y * size.width * kChannels;
    for (std::int64_t x = 0; x < size.width; ++x) {
      for (std::int64_t c = 0; c < kChannels; ++c) pixels[x * kChannels + c] = row.channel(c)[x];
    }
  };
  resize_all({job(picture, size, {0, 0, size}, options, 1, write)}, options.num_threads);
}

void expand(const std::uint8_t* bytes, std::int64_t rows, std::int64_t frame_values,
            const Values& values, std::int64_t num_threads, std::uint8_t* out) {
  constexpr std::int64_t kRows = 64;  // a task
  const auto expand_some = [&](std::int64_t task, std::int64_t) {
    const std::int64_t first = task * kRows, values_before = first * kChannels * frame_values;
    expand_rows(values, bytes + values_before, std::min(kRows, rows - first), frame_values,
                out + values_before * values.frames * values.bytes);
  };
  parallel_for((rows + kRows - 1) / kRows, num_threads, expand_some);
}

}  // namespace fastmpi
