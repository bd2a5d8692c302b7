#include "image_resize.h"

#include <algorithm>
#include <cmath>

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

std::int64_t rounded_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Grows, never shrinks: the memory serves the next picture too.
template <typename T>
T* at_least(std::vector<T>& memory, std::int64_t size) {
  if (memory.size() < index(size)) memory.resize(index(size));
  return memory.data();
}

// Keys' cubic with a = -1/2.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

Filter identity_filter(std::int64_t begin, std::int64_t end) {
  Filter filter{1,
                {},
                std::vector<std::int64_t>(index(end - begin), 1),
                std::vector<std::int32_t>(index(end - begin), kOne)};
  for (std::int64_t i = begin; i < end; ++i) filter.first.push_back(i);
  return filter;
}

// Rounds half away from zero, as a C cast after adding a half does.
std::int32_t fixed_point(double weight) {
  return static_cast<std::int32_t>(weight * kOne + (weight < 0 ? -0.5 : 0.5));
}

}  // namespace

Filter bicubic_filter(std::int64_t input, std::int64_t output, std::int64_t begin,
                      std::int64_t end) {
  if (input == output) return identity_filter(begin, end);
  const double scale = static_cast<double>(input) / static_cast<double>(output);
  const double stretch = std::max(scale, 1.0);  // antialiasing: as wide as an output pixel
  const double support = 2.0 * stretch, per_stretch = 1.0 / stretch;
  Filter filter{static_cast<std::int64_t>(std::ceil(support)) * 2 + 1, {}, {}, {}};
  filter.first.reserve(index(end - begin));
  filter.count.reserve(index(end - begin));
  filter.weights.assign(index((end - begin) * filter.taps), 0);
  std::vector<double> weights(index(filter.taps));
  for (std::int64_t i = begin; i < end; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(centre - support + 0.5));
    const auto last = std::min(input, static_cast<std::int64_t>(centre + support + 0.5));
    double sum = 0;
    for (std::int64_t t = 0; t < last - first; ++t) {
      const double x = static_cast<double>(t + first) - centre + 0.5;
      sum += weights[index(t)] = bicubic(x * per_stretch);
    }
    std::int32_t* out = &filter.weights[index((i - begin) * filter.taps)];
    for (std::int64_t t = 0; t < last - first; ++t) out[t] = fixed_point(weights[index(t)] / sum);
    filter.first.push_back(first);
    filter.count.push_back(last - first);
  }
  return filter;
}

Order pillow_order(Size picture, Size resized, bool since_13) {
  const std::int64_t shorter = picture.height - resized.height;
  const std::int64_t narrower = picture.width - resized.width;
  const bool vertical = since_13 && shorter > 0 && shorter > 2 * narrower;
  return vertical ? Order::kVerticalFirst : Order::kHorizontalFirst;
}

Resizer::Resizer(const Picture& picture, const Filter& horizontal, const Filter& vertical,
                 Order order, std::int64_t begin, std::int64_t end, Scratch& scratch)
    : picture_(picture),
      horizontal_(horizontal),
      vertical_(vertical),
      scratch_(scratch),
      order_(order),
      end_(end),
      stride_(rounded_up(horizontal.size(), kStrip)) {
  const bool vertical_first = order == Order::kVerticalFirst;
  ring_ = kBlock + (vertical_first ? 0 : vertical.taps);
  ready_ = vertical_first ? begin : vertical.first[index(begin)];
  // A block of rows, transposed: kBlock bytes of every channel of every pixel ...
  const std::int64_t pixel = picture.pixel_bytes * kBlock;
  const std::uint8_t* columns = at_least(scratch.columns, picture.width * pixel);
  const std::uint8_t** column_at = at_least(scratch.column_at, picture.width);
  for (std::int64_t x = 0; x < picture.width; ++x) column_at[x] = columns + x * pixel;
  // ... resized, strip by strip, and back in rows, plane after plane.
  at_least(scratch.strip, kStrip * kChannels * kBlock);
  at_least(scratch.rows, ring_ * kChannels * stride_);
  at_least(scratch.blended, vertical_first ? picture.width * pixel : kChannels * stride_);
  const std::uint8_t** row_at = at_least(scratch.row_at, picture.height);
  const std::int64_t last = vertical.last(end - 1);
  for (std::int64_t y = vertical.first[index(begin)]; y < last; ++y) {
    row_at[y] = vertical_first ? picture.row(y) : ring_row(y);
  }
}

PlanarRow Resizer::row(std::int64_t y) {
  return order_ == Order::kVerticalFirst ? vertical_first(y) : horizontal_first(y);
}

PlanarRow Resizer::horizontal_first(std::int64_t y) {
  for (; ready_ < vertical_.last(y); ready_ += kBlock) {
    const std::uint8_t* source[kBlock];  // past the end of the picture its last row is repeated
    for (std::int64_t r = 0; r < kBlock; ++r) {
      source[r] = picture_.row(std::min(ready_ + r, picture_.height - 1));
    }
    resize_along_x(source, ready_);
  }
  blend_along_y(y, kChannels * stride_, scratch_.blended.data());
  return {scratch_.blended.data(), stride_};
}

PlanarRow Resizer::vertical_first(std::int64_t y) {
  if (y == ready_) {
    const std::int64_t row_bytes = picture_.width * picture_.pixel_bytes;
    const std::uint8_t* source[kBlock];
    for (std::int64_t r = 0; r < kBlock; ++r) {
      const std::int64_t at = std::min(r, end_ - 1 - y);
      std::uint8_t* blended = scratch_.blended.data() + at * row_bytes;
      if (at == r) blend_along_y(y + r, row_bytes, blended);
      source[r] = blended;
    }
    resize_along_x(source, y);
    ready_ += kBlock;
  }
  return {ring_row(y), stride_};
}

std::uint8_t* Resizer::ring_row(std::int64_t y) const {
  return scratch_.rows.data() + y % ring_ * kChannels * stride_;
}

void Resizer::blend_along_y(std::int64_t y, std::int64_t n, std::uint8_t* out) const {
  kernels_.blend(&scratch_.row_at[index(vertical_.first[index(y)])],
                 &vertical_.weights[index(y * vertical_.taps)], vertical_.count[index(y)], n, out);
}

// kBlock rows of pixels into the ring, as planes, at the places of first_row and those below it.
void Resizer::resize_along_x(const std::uint8_t* const* source, std::int64_t first_row) {
  kernels_.to_columns(source, picture_.width * picture_.pixel_bytes, scratch_.columns.data());
  std::uint8_t* target[kBlock];
  for (std::int64_t r = 0; r < kBlock; ++r) target[r] = ring_row(first_row + r);
  std::uint8_t* strip = scratch_.strip.data();
  constexpr std::int64_t pixel = kChannels * kBlock;
  for (std::int64_t x = 0; x < horizontal_.size(); x += kStrip) {
    const std::int64_t width = std::min(kStrip, horizontal_.size() - x);
    for (std::int64_t i = 0; i < width; ++i) {
      kernels_.blend(&scratch_.column_at[index(horizontal_.first[index(x + i)])],
                     &horizontal_.weights[index((x + i) * horizontal_.taps)],
                     horizontal_.count[index(x + i)], pixel, strip + i * pixel);
    }
    for (std::int64_t c = 0; c < kChannels; ++c) {
      kernels_.to_rows(strip + c * kBlock, pixel, target, c * stride_ + x);
    }
  }
}

}  // namespace fastmpi
