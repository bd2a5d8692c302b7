#include "samples.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace fastmpi {

void check_offsets(const Array<std::int64_t>& offsets, std::int64_t num_tokens) {
  if (offsets.ndim() != 1 || offsets.size() < 1) {
    throw std::invalid_argument("offsets must be 1-D and not empty");
  }
  const std::int64_t* const values = offsets.data();
  const auto fail = [&](std::int64_t i) {
    throw std::invalid_argument(
        "offsets must start at 0, never fall and end at the number of tokens (" +
        std::to_string(num_tokens) + "), but offsets[" + std::to_string(i) +
        "] = " + std::to_string(values[i]));
  };
  const std::int64_t last = offsets.size() - 1;
  if (values[0] != 0) fail(0);
  for (std::int64_t i = 0; i < last; ++i) {
    if (values[i + 1] < values[i]) fail(i + 1);
  }
  if (values[last] != num_tokens) fail(last);
}

void check_num_tokens(std::int64_t num_tokens) {
  if (num_tokens < std::numeric_limits<std::int32_t>::max()) return;
  throw std::invalid_argument("one call takes fewer than 2**31 - 1 tokens, got " +
                              std::to_string(num_tokens));
}

std::int64_t useful_threads(std::int64_t num_tokens, std::int64_t num_threads) {
  constexpr std::int64_t kTokensPerThread = 1 << 17;  // about as many as a start takes the time of
  return std::min(num_threads, 1 + num_tokens / kTokensPerThread);
}

Samples view_images(const Array<std::int32_t>& image_slots, const Array<std::int64_t>& offsets) {
  if (image_slots.ndim() != 1) throw std::invalid_argument("image_slots must be 1-D");
  check_num_tokens(image_slots.size());
  check_offsets(offsets, image_slots.size());
  return {nullptr, image_slots.data(), offsets.data(), image_slots.size(), offsets.size() - 1};
}

Samples view_samples(const Array<std::int64_t>& ids, const Array<std::int32_t>& image_slots,
                     const Array<std::int64_t>& offsets) {
  Samples samples = view_images(image_slots, offsets);
  if (ids.ndim() != 1 || ids.size() != samples.num_tokens) {
    throw std::invalid_argument("ids must be 1-D and as long as image_slots (" +
                                std::to_string(samples.num_tokens) + ")");
  }
  samples.ids = ids.data();
  return samples;
}

}  // namespace fastmpi
