// A view of S samples of N tokens, concatenated: what every op on forests starts from.
#pragma once

#include <cstdint>

#include "arrays.h"

namespace fastmpi {

struct Samples {
  const std::int64_t* ids;          // (N,), or null where only the images matter
  const std::int32_t* image_slots;  // (N,) index of the image a placeholder shows, < 0 for text
  const std::int64_t* offsets;      // (S + 1,) sample s is ids[offsets[s] .. offsets[s + 1])
  std::int64_t num_tokens;          // N
  std::int64_t num_samples;         // S

  std::int64_t length(std::int64_t sample) const { return offsets[sample + 1] - offsets[sample]; }
};

// Rows and positions are int32: throws std::invalid_argument where that is too small.
void check_num_tokens(std::int64_t num_tokens);

// Threads that are worth their start for so many tokens.
std::int64_t useful_threads(std::int64_t num_tokens, std::int64_t num_threads);

// Throws std::invalid_argument unless offsets (S + 1,) are a partition of the tokens.
void check_offsets(const Array<std::int64_t>& offsets, std::int64_t num_tokens);

// Both throw std::invalid_argument where sizes disagree or offsets are no partition of the tokens.
Samples view_samples(const Array<std::int64_t>& ids, const Array<std::int32_t>& image_slots,
                     const Array<std::int64_t>& offsets);
Samples view_images(const Array<std::int32_t>& image_slots, const Array<std::int64_t>& offsets);

}  // namespace fastmpi
