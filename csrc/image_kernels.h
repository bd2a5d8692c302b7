// The inner loops of resizing, in plain C++, for AVX2 and for AVX-512. Every variant gives the same
// bytes.
//
// Rows of bytes are blended by weights in fixed point: resizing along columns blends rows of
// pixels, and resizing along rows does the same to a block of transposed rows, so that neither
// needs a gather.
#pragma once

#include <cstdint>

namespace fastmpi {

constexpr std::int64_t kBlock = 32;  // bytes a blend takes at once, and rows of a transposed block
constexpr std::int64_t kStrip = 16;  // columns that leave a transposed block at once
constexpr int kPrecisionBits = 22;   // of a weight, as Pillow's: 8 bits of a pixel, 2 of headroom
constexpr std::int32_t kOne = 1 << kPrecisionBits;

struct ImageKernels {
  const char* name;

  // out[j] = sum over t < taps of weights[t] * rows[t][j], rounded, clipped to a byte; j < n.
  void (*blend)(const std::uint8_t* const* rows, const std::int32_t* weights, std::int64_t taps,
                std::int64_t n, std::uint8_t* out);

  // columns[x * kBlock + r] = rows[r][x] for r < kBlock, x < n.
  void (*to_columns)(const std::uint8_t* const* rows, std::int64_t n, std::uint8_t* columns);

  // rows[r][first + x] = columns[x * pitch + r] for r < kBlock, x < kStrip.
  void (*to_rows)(const std::uint8_t* columns, std::int64_t pitch, std::uint8_t* const* rows,
                  std::int64_t first);
};

// The fastest variant that this processor runs, or the one that FASTMPI_SIMD names (plain, avx2,
// avx512) where it runs; read once. Throws std::invalid_argument for another name.
const ImageKernels& image_kernels();

}  // namespace fastmpi
