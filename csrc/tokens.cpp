#include "tokens.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "samples.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

using Int32s = Array<std::int32_t>;
using Int64s = Array<std::int64_t>;

void check_tokens_per_image(const Int32s& tokens_per_image) {
  if (tokens_per_image.ndim() != 1) throw std::invalid_argument("tokens_per_image must be 1-D");
  for (py::ssize_t i = 0; i < tokens_per_image.size(); ++i) {
    if (tokens_per_image.at(i) >= 1) continue;
    throw std::invalid_argument("image " + std::to_string(i) + " takes " +
                                std::to_string(tokens_per_image.at(i)) + " placeholders");
  }
}

// The images of S samples in the order of their showing: sample s shows images[offsets[s] ..
// offsets[s + 1]), each `tokens[image]` placeholders long.
struct Shown {
  const std::int32_t* images;
  const std::int64_t* offsets;
  const std::int32_t* tokens;

  std::int64_t count(std::int64_t sample) const { return offsets[sample + 1] - offsets[sample]; }
  std::int64_t tokens_of(std::int64_t sample) const {
    return std::accumulate(images + offsets[sample], images + offsets[sample + 1], std::int64_t{0},
                           [&](std::int64_t sum, std::int32_t i) { return sum + tokens[i]; });
  }
};

Shown view_shown(const Int32s& shown, const Int64s& shown_offsets, const Int32s& tokens_per_image,
                 std::int64_t num_samples) {
  check_tokens_per_image(tokens_per_image);
  view_images(shown, shown_offsets);  // offsets must be a partition of what is shown
  if (shown_offsets.size() != num_samples + 1) {
    throw std::invalid_argument("shown_offsets must be as long as offsets (" +
                                std::to_string(num_samples + 1) + ")");
  }
  for (py::ssize_t i = 0; i < shown.size(); ++i) {
    if (shown.at(i) >= 0 && shown.at(i) < tokens_per_image.size()) continue;
    throw std::invalid_argument("shown[" + std::to_string(i) +
                                "] = " + std::to_string(shown.at(i)) + ", but there are " +
                                std::to_string(tokens_per_image.size()) + " images");
  }
  return {shown.data(), shown_offsets.data(), tokens_per_image.data()};
}

struct Ids {
  const std::int64_t* ids;
  const std::int64_t* offsets;
  std::int64_t num_samples;

  std::int64_t length(std::int64_t sample) const { return offsets[sample + 1] - offsets[sample]; }
};

Ids view_ids(const Int64s& ids, const Int64s& offsets) {
  if (ids.ndim() != 1) throw std::invalid_argument("ids must be 1-D");
  check_offsets(offsets, ids.size());
  return {ids.data(), offsets.data(), offsets.size() - 1};
}

std::int64_t num_placeholders(const Ids& ids, std::int64_t sample, std::int64_t placeholder) {
  return std::count(ids.ids + ids.offsets[sample], ids.ids + ids.offsets[sample + 1], placeholder);
}

[[noreturn]] void disagree(std::int64_t sample, std::int64_t found, const std::string& wanted) {
  throw std::invalid_argument("sample " + std::to_string(sample) + ": " + std::to_string(found) +
                              " placeholder tokens for " + wanted);
}

// offsets of the samples once every placeholder is as many as its image takes.
std::vector<std::int64_t> expanded_offsets(const Ids& ids, std::int64_t placeholder,
                                           const Shown& shown) {
  std::vector<std::int64_t> offsets(index(ids.num_samples + 1), 0);
  for (std::int64_t s = 0; s < ids.num_samples; ++s) {
    const std::int64_t found = num_placeholders(ids, s, placeholder);
    if (found != shown.count(s)) disagree(s, found, std::to_string(shown.count(s)) + " images");
    // Fewer than 2^31 images of fewer than 2^31 placeholders: no overflow before the check.
    const std::int64_t length = ids.length(s) - found + shown.tokens_of(s);
    check_num_tokens(offsets[index(s)] + length);
    offsets[index(s + 1)] = offsets[index(s)] + length;
  }
  return offsets;
}

void expand(const Ids& ids, std::int64_t placeholder, const Shown& shown, std::int64_t* out,
            std::int32_t* slots) {
  const std::int64_t end = ids.offsets[ids.num_samples];
  const std::int32_t* next = shown.images;
  for (std::int64_t i = 0; i < end; ++i) {
    const bool text = ids.ids[i] != placeholder;
    const std::int32_t slot = text ? -1 : *next++;
    const std::int32_t count = text ? 1 : shown.tokens[slot];
    out = std::fill_n(out, count, ids.ids[i]);
    slots = std::fill_n(slots, count, slot);
  }
}

// The slots of samples that are expanded already.
void assign(const Ids& ids, std::int64_t placeholder, const Shown& shown, std::int32_t* slots) {
  for (std::int64_t s = 0; s < ids.num_samples; ++s) {
    const std::int64_t found = num_placeholders(ids, s, placeholder);
    const std::int64_t wanted = shown.tokens_of(s);
    if (found != wanted) disagree(s, found, "images of " + std::to_string(wanted));
    const std::int32_t* next = shown.images + shown.offsets[s];
    std::int32_t left = 0;
    for (std::int64_t i = ids.offsets[s]; i < ids.offsets[s + 1]; ++i) {
      if (ids.ids[i] != placeholder) {
        slots[i] = -1;
        continue;
      }
      if (left == 0) left = shown.tokens[*next++];
      slots[i] = next[-1];
      --left;
    }
  }
}

// Numbers keys of `width` bytes by their first appearance; open addressing, at most half full. The
// keys are hashes already, but their first bytes may not be uniform in what users pass: all bytes
// enter the hash.
class KeyTable {
 public:
  KeyTable(const std::uint8_t* keys, std::int64_t num_keys, std::int64_t width)
      : keys_(keys), width_(index(width)) {
    std::size_t size = 16;
    while (size < 2 * index(num_keys)) size *= 2;
    entries_.assign(size, -1);
  }

  std::int32_t number(std::int64_t key) {
    const std::uint8_t* const bytes = keys_ + index(key) * width_;
    const std::size_t mask = entries_.size() - 1;
    std::size_t entry = hash(bytes) & mask;
    for (; entries_[entry] >= 0; entry = (entry + 1) & mask) {
      const std::int64_t other = first_[index(entries_[entry])];
      if (std::memcmp(keys_ + index(other) * width_, bytes, width_) == 0) return entries_[entry];
    }
    entries_[entry] = static_cast<std::int32_t>(first_.size());
    first_.push_back(key);
    return entries_[entry];
  }

  std::vector<std::int64_t>& first() { return first_; }

 private:
  std::size_t hash(const std::uint8_t* bytes) const {
    std::uint64_t h = 0xcbf29ce484222325ULL;  // FNV-1a
    for (std::size_t i = 0; i < width_; ++i) h = (h ^ bytes[i]) * 0x100000001b3ULL;
    return h ^ (h >> 32);
  }

  const std::uint8_t* keys_;
  std::size_t width_;
  std::vector<std::int32_t> entries_;
  std::vector<std::int64_t> first_;
};

py::tuple distinct_keys(const Array<std::uint8_t>& keys) {
  if (keys.ndim() != 2 || keys.shape(1) < 1) {
    throw std::invalid_argument("keys must have shape (P, bytes)");
  }
  check_num_tokens(keys.shape(0));
  const std::uint8_t* const data = keys.data();
  const std::int64_t num_keys = keys.shape(0), width = keys.shape(1);
  std::vector<std::int32_t> slots(index(num_keys));
  std::vector<std::int64_t> first;
  {
    py::gil_scoped_release release;
    KeyTable table(data, num_keys, width);
    for (std::int64_t i = 0; i < num_keys; ++i) slots[index(i)] = table.number(i);
    first = std::move(table.first());
  }
  return py::make_tuple(to_numpy(std::move(slots)), to_numpy(std::move(first)));
}

struct FeatureRows {
  std::vector<std::int64_t> image_rows, feature_rows;  // (K,)
};

// `within` of each row inside its image -> its row in the features of all images, concatenated.
FeatureRows find_feature_rows(const std::int32_t* slots, const std::int32_t* within,
                              std::int64_t num_rows, const Int32s& tokens_per_image) {
  const std::int32_t* const tokens = tokens_per_image.data();
  const std::int64_t num_images = tokens_per_image.size();
  std::vector<std::int64_t> start(index(num_images + 1), 0);
  for (std::int64_t i = 0; i < num_images; ++i) start[index(i + 1)] = start[index(i)] + tokens[i];
  FeatureRows found;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::int32_t slot = slots[row];
    if (slot < 0) continue;
    if (slot >= num_images || within[row] < 0 || within[row] >= tokens[slot]) {
      throw std::invalid_argument("row " + std::to_string(row) + " shows placeholder " +
                                  std::to_string(within[row]) + " of image " +
                                  std::to_string(slot) + ", which is not there");
    }
    found.image_rows.push_back(row);
    found.feature_rows.push_back(start[index(slot)] + within[row]);
  }
  return found;
}

}  // namespace

void register_tokens(py::module_& m) {
  m.def(
      "expand_placeholders",
      [](const Int64s& ids, const Int64s& offsets, std::int64_t image_token_id, const Int32s& shown,
         const Int64s& shown_offsets, const Int32s& tokens_per_image) {
        const Ids rows = view_ids(ids, offsets);
        const Shown images = view_shown(shown, shown_offsets, tokens_per_image, rows.num_samples);
        std::vector<std::int64_t> expanded = expanded_offsets(rows, image_token_id, images);
        py::array_t<std::int64_t> out(static_cast<py::ssize_t>(expanded.back()));
        py::array_t<std::int32_t> slots(static_cast<py::ssize_t>(expanded.back()));
        std::int64_t* const o = out.mutable_data();
        std::int32_t* const s = slots.mutable_data();
        {
          py::gil_scoped_release release;
          expand(rows, image_token_id, images, o, s);
        }
        return py::make_tuple(out, to_numpy(std::move(expanded)), slots);
      },
      py::arg("ids").noconvert(), py::arg("offsets").noconvert(), py::arg("image_token_id"),
      py::arg("shown").noconvert(), py::arg("shown_offsets").noconvert(),
      py::arg("tokens_per_image").noconvert());
  m.def(
      "assign_image_slots",
      [](const Int64s& ids, const Int64s& offsets, std::int64_t image_token_id, const Int32s& shown,
         const Int64s& shown_offsets, const Int32s& tokens_per_image) {
        const Ids rows = view_ids(ids, offsets);
        const Shown images = view_shown(shown, shown_offsets, tokens_per_image, rows.num_samples);
        py::array_t<std::int32_t> slots(ids.size());
        std::int32_t* const s = slots.mutable_data();
        {
          py::gil_scoped_release release;
          assign(rows, image_token_id, images, s);
        }
        return slots;
      },
      py::arg("ids").noconvert(), py::arg("offsets").noconvert(), py::arg("image_token_id"),
      py::arg("shown").noconvert(), py::arg("shown_offsets").noconvert(),
      py::arg("tokens_per_image").noconvert());
  m.def("distinct_keys", &distinct_keys, py::arg("keys").noconvert());
  m.def(
      "feature_rows",
      [](const Int32s& image_slots, const Int32s& within, const Int32s& tokens_per_image) {
        check_tokens_per_image(tokens_per_image);
        if (image_slots.ndim() != 1 || within.ndim() != 1 || within.size() != image_slots.size()) {
          throw std::invalid_argument("image_slots and within must be 1-D and equally long");
        }
        const std::int32_t *const slots = image_slots.data(), *const inside = within.data();
        FeatureRows found;
        {
          py::gil_scoped_release release;
          found = find_feature_rows(slots, inside, within.size(), tokens_per_image);
        }
        return py::make_tuple(to_numpy(std::move(found.image_rows)),
                              to_numpy(std::move(found.feature_rows)));
      },
      py::arg("image_slots").noconvert(), py::arg("within").noconvert(),
      py::arg("tokens_per_image").noconvert());
}

}  // namespace fastmpi
