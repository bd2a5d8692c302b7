// What Python may pass to the image ops, checked before any pixel is read.
#include "image_bindings.h"

#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "image_kernels.h"
#include "image_patches.h"
#include "threads.h"

namespace fastmpi {

namespace {

using Shape = std::vector<std::int64_t>;

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument(reason); }

std::string text(const Shape& shape) {
  std::string result = "(";
  for (const std::int64_t side : shape)
    result += (result == "(" ? "" : ", ") + std::to_string(side);
  return result + ")";
}

Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

bool is_plain(const py::array& array) {
  constexpr int flags =
      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  return (array.flags() & flags) == flags;
}

template <typename T>
bool holds(const py::array& array) {
  return array.dtype().is(py::dtype::of<T>());
}

void check_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  refuse(std::string(name) + " must be in " + std::to_string(least) + ".." + std::to_string(most) +
         ", got " + std::to_string(value));
}

Picture view_picture(const py::array& array, const std::string& name) {
  const Shape shape = shape_of(array);
  const bool rgb = shape.size() == 3 && (shape[2] == 3 || shape[2] == 4);
  if (!holds<std::uint8_t>(array) || !is_plain(array) || !rgb) {
    refuse(name + " must be a C-contiguous uint8 array (height, width, 3), got shape " +
           text(shape));
  }
  if (shape[0] < 1 || shape[1] < 1) refuse(name + " is empty: shape " + text(shape));
  if (shape[0] > kMaxSide || shape[1] > kMaxSide) {
    refuse(name + " has a side longer than " + std::to_string(kMaxSide) + ": shape " + text(shape));
  }
  return {static_cast<const std::uint8_t*>(array.data()), shape[0], shape[1], shape[2]};
}

std::vector<Picture> view_pictures(const std::vector<py::array>& arrays) {
  std::vector<Picture> pictures;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    pictures.push_back(view_picture(arrays[i], "picture " + std::to_string(i)));
  }
  return pictures;
}

std::uint8_t* view_out(py::array& out, const Shape& wanted) {
  const Shape shape = shape_of(out);
  if (shape != wanted || !is_plain(out) || !out.writeable()) {
    refuse("out must be a writeable C-contiguous array of shape " + text(wanted) + ", got shape " +
           text(shape));
  }
  return static_cast<std::uint8_t*>(out.mutable_data());
}

// Bytes as they are, without a table; else float32, or bf16 as uint16, by a table of out's type.
Values view_values(const std::optional<py::array>& table, std::int64_t frames,
                   const py::array& out) {
  check_range("frames", frames, 1, 1024);
  if (!table) {
    if (!holds<std::uint8_t>(out) || frames != 1) {
      refuse("without a table, out must be uint8 and hold one frame");
    }
    return {nullptr, 1, frames};
  }
  const bool same = (holds<float>(out) && holds<float>(*table)) ||
                    (holds<std::uint16_t>(out) && holds<std::uint16_t>(*table));
  if (!same || !is_plain(*table) || shape_of(*table) != Shape{kChannels, 256}) {
    refuse("table must be (3, 256) float32 or uint16, C-contiguous, and out of the same type");
  }
  return {static_cast<const std::uint8_t*>(table->data()), out.itemsize(), frames};
}

PatchRule patch_rule(std::int64_t patch, std::int64_t merge, std::int64_t min_pixels,
                     std::int64_t max_pixels) {
  constexpr std::int64_t kMostPixels = std::int64_t{1} << 40;
  check_range("patch_size", patch, 1, 4096);
  check_range("merge_size", merge, 1, 256);
  check_range("min_pixels", min_pixels, 1, kMostPixels);
  check_range("max_pixels", max_pixels, 1, kMostPixels);
  return {patch, merge, min_pixels, max_pixels};
}

Size resized(const Picture& picture, const PatchRule& rule, std::size_t i) {
  try {
    return smart_resize({picture.height, picture.width}, rule);
  } catch (const std::invalid_argument& error) {
    refuse("picture " + std::to_string(i) + ": " + error.what());
  }
}

// (pictures, 3): t, h, w in patches, of pictures given by their sizes (pictures, 2).
py::array_t<std::int64_t> patch_grids(const Array<std::int64_t>& sizes, std::int64_t patch,
                                      std::int64_t merge, std::int64_t min_pixels,
                                      std::int64_t max_pixels) {
  const PatchRule rule = patch_rule(patch, merge, min_pixels, max_pixels);
  if (sizes.ndim() != 2 || sizes.shape(1) != 2) refuse("sizes must have shape (pictures, 2)");
  std::vector<std::int64_t> grids;
  for (py::ssize_t i = 0; i < sizes.shape(0); ++i) {
    const Picture picture{nullptr, sizes.at(i, 0), sizes.at(i, 1), kChannels};
    const Size size = resized(picture, rule, static_cast<std::size_t>(i));
    grids.insert(grids.end(), {1, size.height / patch, size.width / patch});
  }
  return to_numpy(std::move(grids), {sizes.shape(0), 3});
}

void patches_into(const std::vector<py::array>& images, std::int64_t patch, std::int64_t merge,
                  std::int64_t min_pixels, std::int64_t max_pixels, std::int64_t frames,
                  const std::optional<py::array>& table, bool pillow_13, std::int64_t num_threads,
                  py::array out) {
  const PatchRule rule = patch_rule(patch, merge, min_pixels, max_pixels);
  const std::vector<Picture> pictures = view_pictures(images);
  const Values values = view_values(table, frames, out);
  check_num_threads(num_threads);
  std::vector<Size> sizes;
  std::int64_t num_patches = 0;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    sizes.push_back(resized(pictures[i], rule, i));
    num_patches += (sizes[i].height / patch) * (sizes[i].width / patch);
  }
  std::uint8_t* memory = view_out(out, {num_patches, kChannels * frames * patch * patch});
  py::gil_scoped_release release;
  image_patches(pictures, sizes, rule, values, {pillow_13, num_threads}, memory);
}

void crops_into(const std::vector<py::array>& images, std::int64_t shortest_edge,
                std::int64_t height, std::int64_t width, const std::optional<py::array>& table,
                bool pillow_13, std::int64_t num_threads, py::array out) {
  check_range("shortest_edge", shortest_edge, 1, kMaxSide);
  check_range("crop height", height, 1, shortest_edge);
  check_range("crop width", width, 1, shortest_edge);
  const CropRule rule{shortest_edge, {height, width}};
  const std::vector<Picture> pictures = view_pictures(images);
  const Values values = view_values(table, 1, out);
  check_num_threads(num_threads);
  const auto num_pictures = static_cast<std::int64_t>(pictures.size());
  std::uint8_t* memory = view_out(out, {num_pictures, kChannels, height, width});
  py::gil_scoped_release release;
  image_crops(pictures, rule, values, {pillow_13, num_threads}, memory);
}

void resize_into(const py::array& image, bool pillow_13, std::int64_t num_threads, py::array out) {
  const Picture picture = view_picture(image, "image");
  const Shape shape = shape_of(out);
  if (shape.size() != 3 || !holds<std::uint8_t>(out))
    refuse("out must be uint8 (height, width, 3)");
  check_range("height", shape[0], 1, kMaxSide);
  check_range("width", shape[1], 1, kMaxSide);
  check_num_threads(num_threads);
  std::uint8_t* memory = view_out(out, {shape[0], shape[1], kChannels});
  py::gil_scoped_release release;
  resize(picture, {shape[0], shape[1]}, {pillow_13, num_threads}, memory);
}

void expand_into(const py::array& bytes, const py::array& table, std::int64_t frames,
                 std::int64_t num_threads, py::array out) {
  const Values values = view_values(table, frames, out);
  const Shape shape = shape_of(bytes);
  if (shape.size() != 2 || shape[1] % kChannels != 0 || !holds<std::uint8_t>(bytes) ||
      !is_plain(bytes)) {
    refuse("bytes must be a C-contiguous uint8 array (rows, 3 * n), got shape " + text(shape));
  }
  check_range("bytes' row", shape[1], 0, std::numeric_limits<std::int64_t>::max() / 8192);
  check_num_threads(num_threads);
  std::uint8_t* memory = view_out(out, {shape[0], frames * shape[1]});
  if (out.size() == 0) return;  // any number of rows
  const auto* source = static_cast<const std::uint8_t*>(bytes.data());
  py::gil_scoped_release release;
  expand(source, shape[0], shape[1] / kChannels, values, num_threads, memory);
}

}  // namespace

void register_images(py::module_& m) {
  m.attr("MAX_IMAGE_SIDE") = kMaxSide;
  m.def("image_kernels", [] { return image_kernels().name; });
  m.def("patch_grids", &patch_grids, py::arg("sizes").noconvert(), py::arg("patch_size"),
        py::arg("merge_size"), py::arg("min_pixels"), py::arg("max_pixels"));
  m.def("image_patches", &patches_into, py::arg("images"), py::arg("patch_size"),
        py::arg("merge_size"), py::arg("min_pixels"), py::arg("max_pixels"), py::arg("frames"),
        py::arg("table").none(true), py::arg("pillow_13"), py::arg("num_threads"), py::arg("out"));
  m.def("image_crops", &crops_into, py::arg("images"), py::arg("shortest_edge"), py::arg("height"),
        py::arg("width"), py::arg("table").none(true), py::arg("pillow_13"), py::arg("num_threads"),
        py::arg("out"));
  m.def("resize_image", &resize_into, py::arg("image"), py::arg("pillow_13"),
        py::arg("num_threads"), py::arg("out"));
  m.def("expand_patches", &expand_into, py::arg("patches"), py::arg("table"), py::arg("frames"),
        py::arg("num_threads"), py::arg("out"));
}

}  // namespace fastmpi
