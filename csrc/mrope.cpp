#include "mrope.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "threads.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// Where a path stands before its next token.
struct Place {
  std::int32_t position = 0;  // of the next text token; inside an image, of the image's start
  std::int32_t slot = -1;     // of the image it is inside
  std::int32_t shown = 0;     // placeholders of that image so far, 0 outside of images
};

// What is written for each of n tokens.
struct Target {
  std::int32_t* temporal;  // (n,)
  std::int32_t* height;    // (n,)
  std::int32_t* width;     // (n,)
  std::int32_t* within;    // (n,) index of a placeholder inside its image, 0 for text; or null
};

// Tokens whose image slots are no whole images: found by `fill`, told by its callers.
struct BrokenImage {
  std::int64_t token;
  Place place;
};

void count_up(std::int32_t* out, std::int64_t n, std::int32_t from) {
  for (std::int64_t k = 0; k < n; ++k) out[k] = from + static_cast<std::int32_t>(k);
}

// Qwen's three axes: an image keeps its temporal position, and counts its rows and columns from it.
class Mrope {
 public:
  Mrope(const Array<std::int32_t>& grids, std::int64_t merge_size);

  std::int64_t num_images() const { return static_cast<std::int64_t>(grids_.size()); }
  std::int64_t tokens(std::int32_t slot) const {
    return std::int64_t{grids_[index(slot)].rows} * grids_[index(slot)].columns;
  }
  std::int32_t start(std::int32_t temporal, std::int32_t) const { return temporal; }
  // At most the number of tokens: an image is no longer than its area.
  std::int32_t after(const Place& place) const {
    return place.position +
           std::max(grids_[index(place.slot)].rows, grids_[index(place.slot)].columns);
  }
  // Positions of placeholders shown .. shown + n of an image, at tokens i ..
  void image(const Target& to, std::int64_t i, std::int64_t n, const Place& place) const {
    const std::int32_t columns = grids_[index(place.slot)].columns;
    std::fill_n(to.temporal + i, n, place.position);
    std::int32_t row = place.shown / columns, column = place.shown % columns;
    for (const std::int64_t stop = i + n; i < stop; ++row, column = 0) {
      const std::int64_t count = std::min<std::int64_t>(columns - column, stop - i);
      std::fill_n(to.height + i, count, place.position + row);
      count_up(to.width + i, count, place.position + column);
      i += count;
    }
  }

 private:
  struct Grid {
    std::int32_t rows, columns;  // of merged patches
  };
  std::vector<Grid> grids_;
};

// LLaVA's: every token counts one in all axes.
class Linear {
 public:
  explicit Linear(const Array<std::int32_t>& tokens_per_image);

  std::int64_t num_images() const { return num_images_; }
  std::int64_t tokens(std::int32_t slot) const { return tokens_[slot]; }
  std::int32_t start(std::int32_t temporal, std::int32_t within) const { return temporal - within; }
  std::int32_t after(const Place& place) const { return place.position + tokens_[place.slot]; }
  void image(const Target& to, std::int64_t i, std::int64_t n, const Place& place) const {
    for (std::int32_t* axis : {to.temporal, to.height, to.width}) {
      count_up(axis + i, n, place.position + place.shown);
    }
  }

 private:
  const std::int32_t* tokens_;
  std::int64_t num_images_;
};

[[noreturn]] void bad_image(std::int64_t image, const std::string& reason) {
  throw std::invalid_argument("image " + std::to_string(image) + ": " + reason);
}

Mrope::Mrope(const Array<std::int32_t>& grids, std::int64_t merge_size) {
  if (grids.ndim() != 2 || grids.shape(1) != 3) {
    throw std::invalid_argument("grids must have shape (images, 3)");
  }
  if (merge_size < 1) throw std::invalid_argument("merge_size must be at least 1");
  grids_.reserve(static_cast<std::size_t>(grids.shape(0)));
  for (py::ssize_t i = 0; i < grids.shape(0); ++i) {
    const std::int32_t t = grids.at(i, 0), h = grids.at(i, 1), w = grids.at(i, 2);
    const auto grid = [&] {
      return "grid (" + std::to_string(t) + ", " + std::to_string(h) + ", " + std::to_string(w) +
             ")";
    };
    if (t != 1) bad_image(i, grid() + " is a video's, and only still images are supported");
    if (h < 1 || w < 1 || h % merge_size != 0 || w % merge_size != 0) {
      bad_image(i, grid() + " is no multiple of merge_size " + std::to_string(merge_size));
    }
    grids_.push_back(
        {static_cast<std::int32_t>(h / merge_size), static_cast<std::int32_t>(w / merge_size)});
  }
}

Linear::Linear(const Array<std::int32_t>& tokens_per_image)
    : tokens_(tokens_per_image.data()), num_images_(tokens_per_image.size()) {
  if (tokens_per_image.ndim() != 1) throw std::invalid_argument("tokens_per_image must be 1-D");
  for (std::int64_t i = 0; i < num_images_; ++i) {
    if (tokens_[i] < 1) bad_image(i, "takes " + std::to_string(tokens_[i]) + " placeholders");
  }
}

// The first of slots[i .. end) that is no text; 16 at a time, which compilers vectorise.
std::int64_t text_end(const std::int32_t* slots, std::int64_t i, std::int64_t end) {
  constexpr std::int64_t kBlock = 16;
  for (; i + kBlock <= end; i += kBlock) {
    std::int32_t all = -1;
    for (std::int64_t k = 0; k < kBlock; ++k) all &= slots[i + k];
    if (all >= 0) break;
  }
  while (i < end && slots[i] < 0) ++i;
  return i;
}

// Whether slots[i .. i + n) are all `slot`.
bool all_equal(const std::int32_t* slots, std::int64_t i, std::int64_t n, std::int32_t slot) {
  std::int32_t differ = 0;
  for (std::int64_t k = i; k < i + n; ++k) differ |= slots[k] ^ slot;
  return differ == 0;
}

// Writes the positions of tokens [i, end), which follow one another on one path, and returns where
// the path stands after them. A run of one slot may show its image several times.
template <typename Rope>
Place fill(const Rope& rope, const std::int32_t* slots, std::int64_t i, std::int64_t end,
           Place place, const Target& to) {
  while (i < end) {
    if (place.shown == 0) {
      const std::int64_t count = text_end(slots, i, end) - i;
      for (std::int32_t* axis : {to.temporal, to.height, to.width}) {
        count_up(axis + i, count, place.position);
      }
      if (to.within != nullptr) std::fill_n(to.within + i, count, 0);
      place.position += static_cast<std::int32_t>(count);
      i += count;
      if (i == end) break;
      place.slot = slots[i];
      if (place.slot >= rope.num_images()) throw BrokenImage{i, place};
    }
    const std::int64_t tokens = rope.tokens(place.slot);
    const std::int64_t count = std::min(tokens - place.shown, end - i);
    if (!all_equal(slots, i, count, place.slot)) throw BrokenImage{i, place};
    rope.image(to, i, count, place);
    if (to.within != nullptr) count_up(to.within + i, count, place.shown);
    i += count;
    place.shown += static_cast<std::int32_t>(count);
    if (place.shown == tokens) place = {rope.after(place), -1, 0};
  }
  return place;
}

[[noreturn]] void no_such_image(const std::string& where, std::int32_t slot, std::int64_t images) {
  throw std::invalid_argument(where + ": image slot " + std::to_string(slot) + ", but there are " +
                              std::to_string(images) + " images");
}

// The run of one slot around `token` in [begin, end).
std::int64_t run_length(const std::int32_t* slots, std::int64_t begin, std::int64_t end,
                        std::int64_t token, std::int32_t slot) {
  std::int64_t first = token, stop = token;
  while (first > begin && slots[first - 1] == slot) --first;
  while (stop < end && slots[stop] == slot) ++stop;
  return stop - first;
}

// One whole sample, the tokens [begin, end).
template <typename Rope>
void fill_sample(const Rope& rope, const std::int32_t* slots, std::int64_t sample,
                 std::int64_t begin, std::int64_t end, const Target& to) {
  try {
    const Place place = fill(rope, slots, begin, end, Place{}, to);
    if (place.shown != 0) throw BrokenImage{end, place};
  } catch (const BrokenImage& broken) {
    const std::int32_t slot = broken.place.slot;
    const std::string where = "sample " + std::to_string(sample);
    if (slot >= rope.num_images()) no_such_image(where, slot, rope.num_images());
    const std::int64_t found = run_length(slots, begin, end, broken.token, slot);
    throw std::invalid_argument(where + ": image " + std::to_string(slot) + " takes " +
                                std::to_string(rope.tokens(slot)) +
                                " placeholders, but its run has " + std::to_string(found));
  }
}

// Where a path stands after a row that is written already.
template <typename Rope>
Place after_row(const Rope& rope, const std::int32_t* slots, std::int64_t row, const Target& to) {
  if (slots[row] < 0) return {to.temporal[row] + 1, -1, 0};
  Place place{0, slots[row], to.within[row] + 1};
  place.position = rope.start(to.temporal[row], to.within[row]);
  if (place.shown == rope.tokens(place.slot)) return {rope.after(place), -1, 0};
  return place;
}

// Rows of a forest, parents before children: a chain of first children is one stretch of a path.
template <typename Rope>
void fill_forest(const Rope& rope, const std::int32_t* slots, const std::int32_t* parent,
                 std::int64_t num_rows, const Target& to) {
  for (std::int64_t row = 0, end = 0; row < num_rows; row = end) {
    if (parent[row] < -1 || parent[row] >= row) {
      throw std::invalid_argument("parent[" + std::to_string(row) + "] = " +
                                  std::to_string(parent[row]) + " is no row before it, nor -1");
    }
    for (end = row + 1; end < num_rows && parent[end] == end - 1;) ++end;
    const Place begin = parent[row] < 0 ? Place{} : after_row(rope, slots, parent[row], to);
    try {
      const Place place = fill(rope, slots, row, end, begin, to);
      if (place.shown != 0) throw BrokenImage{end - 1, place};
    } catch (const BrokenImage& broken) {
      const std::int32_t slot = broken.place.slot;
      const std::string where = "row " + std::to_string(broken.token);
      if (slot >= rope.num_images()) no_such_image(where, slot, rope.num_images());
      throw std::invalid_argument(where + ": image " + std::to_string(slot) + " takes " +
                                  std::to_string(rope.tokens(slot)) +
                                  " placeholders, which do not follow one another on its path");
    }
  }
}

// Calls fill_one(sample) for each; where several fail, the first is told, whatever the threads.
template <typename FillOne>
void for_each_sample(std::int64_t num_samples, std::int64_t num_tokens, std::int64_t num_threads,
                     FillOne fill_one) {
  constexpr std::int64_t kPortion = 8;
  const auto fill_portion = [&](std::int64_t task, std::int64_t) {
    const std::int64_t end = std::min(kPortion * (task + 1), num_samples);
    for (std::int64_t s = kPortion * task; s < end; ++s) fill_one(s);
  };
  try {
    parallel_for((num_samples + kPortion - 1) / kPortion, useful_threads(num_tokens, num_threads),
                 fill_portion);
  } catch (const std::invalid_argument&) {
    for (std::int64_t s = 0; s < num_samples; ++s) fill_one(s);
    throw;
  }
}

// Positions (3, n) and indices inside images (n,).
class Positions {
 public:
  explicit Positions(py::ssize_t n)
      : axes_(std::vector<py::ssize_t>{3, n}), within_(std::vector<py::ssize_t>{n}) {
    std::int32_t* const axes = axes_.mutable_data();
    target_ = {axes, axes + n, axes + 2 * n, within_.mutable_data()};
  }

  const Target& target() const { return target_; }
  py::tuple tuple() const { return py::make_tuple(axes_, within_); }

 private:
  py::array_t<std::int32_t> axes_, within_;
  Target target_;
};

template <typename Rope>
py::tuple positions_of_samples(const Array<std::int32_t>& image_slots,
                               const Array<std::int64_t>& offsets, const Rope& rope,
                               std::int64_t num_threads) {
  check_num_threads(num_threads);
  const Samples samples = view_images(image_slots, offsets);
  const Positions positions(image_slots.size());
  {
    py::gil_scoped_release release;
    for_each_sample(samples.num_samples, samples.num_tokens, num_threads, [&](std::int64_t s) {
      fill_sample(rope, samples.image_slots, s, samples.offsets[s], samples.offsets[s + 1],
                  positions.target());
    });
  }
  return positions.tuple();
}

template <typename Rope>
void positions_of_batch(const Array<std::int32_t>& image_slots, const Array<std::int64_t>& lengths,
                        const Rope& rope, std::int64_t num_threads, Array<std::int32_t>& out) {
  check_num_threads(num_threads);
  if (image_slots.ndim() != 2 || lengths.ndim() != 1 || lengths.size() != image_slots.shape(0)) {
    throw std::invalid_argument("image_slots must have shape (B, L) and lengths (B,)");
  }
  check_num_tokens(image_slots.size());
  const std::int64_t columns = image_slots.shape(1);
  const std::int32_t* const slots = image_slots.data();
  const std::int64_t* const length = lengths.data();
  const std::int64_t num_samples = lengths.size();
  for (std::int64_t s = 0; s < num_samples; ++s) {
    if (length[s] >= 0 && length[s] <= columns) continue;
    throw std::invalid_argument("lengths[" + std::to_string(s) +
                                "] = " + std::to_string(length[s]) + " is not in [0, " +
                                std::to_string(columns) + "]");
  }
  if (out.ndim() != 3 || out.shape(0) != 3 || out.shape(1) != image_slots.shape(0) ||
      out.shape(2) != columns) {
    throw std::invalid_argument("out must have shape (3, B, L)");
  }
  if (!out.writeable()) throw std::invalid_argument("out must be writeable");
  std::int32_t* const axes = out.mutable_data();
  const std::int64_t n = image_slots.size();
  const Target to{axes, axes + n, axes + 2 * n, nullptr};
  {
    py::gil_scoped_release release;
    for_each_sample(num_samples, n, num_threads, [&](std::int64_t s) {
      const std::int64_t begin = s * columns, end = begin + length[s];
      fill_sample(rope, slots, s, begin, end, to);
      for (std::int32_t* axis : {to.temporal, to.height, to.width}) {
        std::fill(axis + end, axis + begin + columns, 0);
      }
    });
  }
}

template <typename Rope>
py::tuple positions_of_forest(const Array<std::int32_t>& image_slots,
                              const Array<std::int32_t>& parent, const Rope& rope) {
  if (image_slots.ndim() != 1 || parent.ndim() != 1 || parent.size() != image_slots.size()) {
    throw std::invalid_argument("image_slots and parent must be 1-D and equally long");
  }
  check_num_tokens(image_slots.size());
  const std::int32_t *const slots = image_slots.data(), *const above = parent.data();
  const std::int64_t num_rows = parent.size();
  const Positions positions(image_slots.size());
  {
    py::gil_scoped_release release;
    fill_forest(rope, slots, above, num_rows, positions.target());
  }
  return positions.tuple();
}

}  // namespace

void register_mrope(py::module_& m) {
  const auto slots = py::arg("image_slots").noconvert();
  const auto grids = py::arg("grids").noconvert();
  const auto counts = py::arg("tokens_per_image").noconvert();
  using Slots = const Array<std::int32_t>&;
  using Sizes = const Array<std::int64_t>&;
  m.def(
      "mrope_positions",
      [](Slots image_slots, Sizes offsets, Slots grid, std::int64_t merge_size,
         std::int64_t num_threads) {
        return positions_of_samples(image_slots, offsets, Mrope(grid, merge_size), num_threads);
      },
      slots, py::arg("offsets").noconvert(), grids, py::arg("merge_size"), py::arg("num_threads"));
  m.def(
      "mrope_batch_positions",
      [](Slots image_slots, Sizes lengths, Slots grid, std::int64_t merge_size,
         std::int64_t num_threads, Array<std::int32_t>& out) {
        positions_of_batch(image_slots, lengths, Mrope(grid, merge_size), num_threads, out);
      },
      slots, py::arg("lengths").noconvert(), grids, py::arg("merge_size"), py::arg("num_threads"),
      py::arg("out").noconvert());
  m.def(
      "mrope_forest_positions",
      [](Slots image_slots, Slots parent, Slots grid, std::int64_t merge_size) {
        return positions_of_forest(image_slots, parent, Mrope(grid, merge_size));
      },
      slots, py::arg("parent").noconvert(), grids, py::arg("merge_size"));
  m.def(
      "linear_positions",
      [](Slots image_slots, Sizes offsets, Slots tokens_per_image, std::int64_t num_threads) {
        return positions_of_samples(image_slots, offsets, Linear(tokens_per_image), num_threads);
      },
      slots, py::arg("offsets").noconvert(), counts, py::arg("num_threads"));
  m.def(
      "linear_forest_positions",
      [](Slots image_slots, Slots parent, Slots tokens_per_image) {
        return positions_of_forest(image_slots, parent, Linear(tokens_per_image));
      },
      slots, py::arg("parent").noconvert(), counts);
}

}  // namespace fastmpi
