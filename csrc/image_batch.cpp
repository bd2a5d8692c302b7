#include "image_batch.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "threads.h"

namespace fastmpi {

namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// Filters of all jobs, each distinct one made once.
class Filters {
 public:
  // Returns the place of a filter that make_all() will fill.
  std::size_t add(std::int64_t input, std::int64_t output, std::int64_t begin, std::int64_t size) {
    const auto [at, added] = places_.insert({{input, output, begin, begin + size}, keys_.size()});
    if (added) keys_.push_back(at->first);
    return at->second;
  }
  void make_all(std::int64_t num_threads) {
    const auto num_filters = static_cast<std::int64_t>(keys_.size());
    filters_.resize(keys_.size());
    const auto make = [&](std::int64_t i, std::int64_t) {
      const auto [input, output, begin, end] = keys_[index(i)];
      filters_[index(i)] = bicubic_filter(input, output, begin, end);
    };
    // few take less time than starting threads
    parallel_for(num_filters, num_filters <= 8 ? 1 : num_threads, make);
  }
  const Filter& operator[](std::size_t place) const { return filters_[place]; }

 private:
  using Key = std::array<std::int64_t, 4>;  // input, output, begin, end
  std::map<Key, std::size_t> places_;
  std::vector<Key> keys_;
  std::vector<Filter> filters_;
};

constexpr std::int64_t kLeastRows = 2 * kBlock;  // of a band

// Rows [begin, end) of a job's window.
struct Band {
  std::size_t job;
  std::int64_t begin, end;
};

std::int64_t num_values(const ResizeJob& job) {
  return job.window.size.height * job.window.size.width;
}

// A band repeats some of its neighbour's work along x, and fills its last block of rows in part, so
// there are no more than keep the threads evenly busy: one each, or two where sizes may differ.
std::vector<Band> cut(const std::vector<ResizeJob>& jobs, std::int64_t num_threads) {
  std::int64_t total = 0;
  for (const ResizeJob& job : jobs) total += num_values(job);
  const std::int64_t each = jobs.size() == 1 || num_threads == 1 ? 1 : 2;
  const std::int64_t share = total / (each * num_threads) + 1;
  std::vector<Band> bands;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const std::int64_t unit = jobs[j].unit, units = jobs[j].window.size.height / unit;
    const std::int64_t most = std::max<std::int64_t>(1, units * unit / kLeastRows);
    const std::int64_t wanted = (num_values(jobs[j]) + share / 2) / share;
    const std::int64_t parts = std::clamp<std::int64_t>(wanted, 1, most);
    for (std::int64_t i = 0; i < parts; ++i) {
      bands.push_back({j, units * i / parts * unit, units * (i + 1) / parts * unit});
    }
  }
  return bands;
}

}  // namespace

void resize_all(const std::vector<ResizeJob>& jobs, std::int64_t num_threads) {
  Filters filters;
  std::vector<std::pair<std::size_t, std::size_t>> used;  // (horizontal, vertical) of each job
  for (const ResizeJob& job : jobs) {
    const Window& window = job.window;
    used.emplace_back(
        filters.add(job.picture.width, job.size.width, window.left, window.size.width),
        filters.add(job.picture.height, job.size.height, window.top, window.size.height));
  }
  filters.make_all(num_threads);
  const std::vector<Band> bands = cut(jobs, num_threads);
  // The caller's, for all workers: threads end with the call, their memory should not.
  thread_local std::vector<Scratch> scratches;
  if (scratches.size() < index(num_threads)) scratches.resize(index(num_threads));
  std::vector<Scratch>& memory = scratches;  // a lambda would find its own thread's
  parallel_for(static_cast<std::int64_t>(bands.size()), num_threads,
               [&](std::int64_t i, std::int64_t worker) {
                 const Band& band = bands[index(i)];
                 const ResizeJob& job = jobs[band.job];
                 const auto [horizontal, vertical] = used[band.job];
                 Scratch& scratch = memory[index(worker)];
                 Resizer resizer(job.picture, filters[horizontal], filters[vertical], job.order,
                                 band.begin, band.end, scratch);
                 for (std::int64_t y = band.begin; y < band.end; ++y) {
                   job.write(y, resizer.row(y), scratch);
                 }
               });
}

}  // namespace fastmpi
