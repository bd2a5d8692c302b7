#include "samples.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace fastmpi {

namespace {

void check_offsets(const Samples& samples) {
  const auto fail = [&](std::int64_t i) {
    throw std::invalid_argument(
        "offsets must start at 0, never fall and end at the number of tokens (" +
        std::to_string(samples.num_tokens) + "), but offsets[" + std::to_string(i) +
        "] = " + std::to_string(samples.offsets[i]));
  };
  if (samples.offsets[0] != 0) fail(0);
  for (std::int64_t s = 0; s < samples.num_samples; ++s) {
    if (samples.length(s) < 0) fail(s + 1);
  }
  if (samples.offsets[samples.num_samples] != samples.num_tokens) fail(samples.num_samples);
}

}  // namespace

Samples view_images(const Array<std::int32_t>& image_slots, const Array<std::int64_t>& offsets) {
  if (image_slots.ndim() != 1 || offsets.ndim() != 1 || offsets.size() < 1) {
    throw std::invalid_argument("image_slots and offsets must be 1-D, and offsets not empty");
  }
  const Samples samples{nullptr, image_slots.data(), offsets.data(), image_slots.size(),
                        offsets.size() - 1};
  if (samples.num_tokens >= std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("one call takes fewer than 2**31 - 1 tokens, got " +
                                std::to_string(samples.num_tokens));
  }
  check_offsets(samples);
  return samples;
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
