#include "mrope.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// The token after the run of one slot that starts at i.
std::int64_t run_end(const Samples& samples, std::int64_t i, std::int64_t end) {
  const std::int32_t slot = samples.image_slots[i];
  while (i < end && samples.image_slots[i] == slot) ++i;
  return i;
}

void check_run(std::int64_t sample, std::int32_t slot, std::int64_t found, std::int64_t tokens) {
  if (found % tokens == 0) return;
  throw std::invalid_argument("sample " + std::to_string(sample) + ": image " +
                              std::to_string(slot) + " takes " + std::to_string(tokens) +
                              " placeholders, but its run has " + std::to_string(found));
}

void check_slot(std::int64_t sample, std::int32_t slot, std::int64_t num_images) {
  if (slot < num_images) return;
  throw std::invalid_argument("sample " + std::to_string(sample) + ": image slot " +
                              std::to_string(slot) + ", but there are " +
                              std::to_string(num_images) + " images");
}

// Calls text(i) for every text token and image(i, slot) for the first placeholder of every image,
// in the order of one sample. A run of one slot may hold the same image several times.
template <typename TokensOf, typename Text, typename Image>
void walk(const Samples& samples, std::int64_t sample, std::int64_t num_images, TokensOf tokens_of,
          Text text, Image image) {
  const std::int64_t end = samples.offsets[sample + 1];
  for (std::int64_t i = samples.offsets[sample]; i < end;) {
    const std::int32_t slot = samples.image_slots[i];
    if (slot < 0) {
      text(i++);
      continue;
    }
    check_slot(sample, slot, num_images);
    const std::int64_t stop = run_end(samples, i, end);
    const std::int64_t tokens = tokens_of(slot);
    check_run(sample, slot, stop - i, tokens);
    for (; i < stop; i += tokens) image(i, slot);
  }
}

Positions zeros(const Samples& samples) {
  return {std::vector<std::int32_t>(index(3 * samples.num_tokens)),
          std::vector<std::int32_t>(index(samples.num_tokens))};
}

[[noreturn]] void bad_image(std::int64_t image, const std::string& reason) {
  throw std::invalid_argument("image " + std::to_string(image) + ": " + reason);
}

std::vector<Grid> merged_grids(const Array<std::int32_t>& grids, std::int64_t merge_size) {
  if (grids.ndim() != 2 || grids.shape(1) != 3) {
    throw std::invalid_argument("grids must have shape (images, 3)");
  }
  if (merge_size < 1) throw std::invalid_argument("merge_size must be at least 1");
  std::vector<Grid> merged;
  for (py::ssize_t i = 0; i < grids.shape(0); ++i) {
    const std::int32_t t = grids.at(i, 0), h = grids.at(i, 1), w = grids.at(i, 2);
    const std::string grid =
        "(" + std::to_string(t) + ", " + std::to_string(h) + ", " + std::to_string(w) + ")";
    if (t != 1) bad_image(i, "grid " + grid + " is a video's, and only still images are supported");
    if (h < 1 || w < 1 || h % merge_size != 0 || w % merge_size != 0) {
      bad_image(i, "grid " + grid + " is no multiple of merge_size " + std::to_string(merge_size));
    }
    merged.push_back(
        {static_cast<std::int32_t>(h / merge_size), static_cast<std::int32_t>(w / merge_size)});
  }
  return merged;
}

py::tuple to_tuple(Positions positions) {
  const auto num_tokens = static_cast<py::ssize_t>(positions.within.size());
  return py::make_tuple(to_numpy(std::move(positions.axes), {3, num_tokens}),
                        to_numpy(std::move(positions.within)));
}

}  // namespace

Positions mrope_positions(const Samples& samples, const std::vector<Grid>& grids) {
  Positions result = zeros(samples);
  std::int32_t* temporal = result.axes.data();
  std::int32_t* height = temporal + samples.num_tokens;
  std::int32_t* width = height + samples.num_tokens;
  const auto tokens_of = [&](std::int32_t slot) {
    return std::int64_t{grids[index(slot)].rows} * grids[index(slot)].columns;
  };
  for (std::int64_t sample = 0; sample < samples.num_samples; ++sample) {
    std::int32_t position = 0;  // at most the number of tokens: an image is no longer than its area
    const auto text = [&](std::int64_t i) { temporal[i] = height[i] = width[i] = position++; };
    const auto image = [&](std::int64_t start, std::int32_t slot) {
      const Grid grid = grids[index(slot)];
      std::int64_t i = start;
      for (std::int32_t row = 0; row < grid.rows; ++row) {
        for (std::int32_t column = 0; column < grid.columns; ++column, ++i) {
          temporal[i] = position;
          height[i] = position + row;
          width[i] = position + column;
          result.within[index(i)] = static_cast<std::int32_t>(i - start);
        }
      }
      position += std::max(grid.rows, grid.columns);
    };
    walk(samples, sample, static_cast<std::int64_t>(grids.size()), tokens_of, text, image);
  }
  return result;
}

Positions linear_positions(const Samples& samples, const std::int32_t* tokens_per_image,
                           std::int64_t num_images) {
  Positions result = zeros(samples);
  const auto tokens_of = [&](std::int32_t slot) { return std::int64_t{tokens_per_image[slot]}; };
  const auto text = [](std::int64_t) {};
  const auto image = [&](std::int64_t start, std::int32_t slot) {
    for (std::int32_t k = 0; k < tokens_per_image[slot]; ++k) result.within[index(start + k)] = k;
  };
  for (std::int64_t sample = 0; sample < samples.num_samples; ++sample) {
    for (std::int64_t k = 0; k < samples.length(sample); ++k) {
      const std::int64_t i = samples.offsets[sample] + k;
      for (std::int64_t axis = 0; axis < 3; ++axis) {
        result.axes[index(axis * samples.num_tokens + i)] = static_cast<std::int32_t>(k);
      }
    }
    walk(samples, sample, num_images, tokens_of, text, image);
  }
  return result;
}

void register_mrope(py::module_& m) {
  m.def(
      "mrope_positions",
      [](const Array<std::int32_t>& image_slots, const Array<std::int64_t>& offsets,
         const Array<std::int32_t>& grids, std::int64_t merge_size) {
        const Samples samples = view_images(image_slots, offsets);
        const std::vector<Grid> merged = merged_grids(grids, merge_size);
        Positions positions;
        {
          py::gil_scoped_release release;
          positions = mrope_positions(samples, merged);
        }
        return to_tuple(std::move(positions));
      },
      py::arg("image_slots").noconvert(), py::arg("offsets").noconvert(),
      py::arg("grids").noconvert(), py::arg("merge_size"));
  m.def(
      "linear_positions",
      [](const Array<std::int32_t>& image_slots, const Array<std::int64_t>& offsets,
         const Array<std::int32_t>& tokens_per_image) {
        const Samples samples = view_images(image_slots, offsets);
        if (tokens_per_image.ndim() != 1) {
          throw std::invalid_argument("tokens_per_image must be 1-D");
        }
        const std::int32_t* tokens = tokens_per_image.data();
        for (py::ssize_t i = 0; i < tokens_per_image.size(); ++i) {
          if (tokens[i] < 1) bad_image(i, "takes " + std::to_string(tokens[i]) + " placeholders");
        }
        Positions positions;
        {
          py::gil_scoped_release release;
          positions = linear_positions(samples, tokens, tokens_per_image.size());
        }
        return to_tuple(std::move(positions));
      },
      py::arg("image_slots").noconvert(), py::arg("offsets").noconvert(),
      py::arg("tokens_per_image").noconvert());
}

}  // namespace fastmpi
