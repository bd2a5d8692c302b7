// A loop over independent tasks on a few threads.
//
// Threads are started per call and joined before it returns: starting one costs tens of
// microseconds, and no pool is left behind that a forked data-loading worker would find dead.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace fastmpi {

inline void check_num_threads(std::int64_t num_threads) {
  if (num_threads >= 1 && num_threads <= 1024) return;
  throw std::invalid_argument("num_threads must be in 1..1024, got " + std::to_string(num_threads));
}

// Calls run(task, worker) for every task in [0, num_tasks), in order of tasks but on up to
// num_threads workers (the caller is worker 0), and rethrows the first exception. Fewer threads
// than asked for, where the system gives no more, change nothing but the time.
template <typename Run>
void parallel_for(std::int64_t num_tasks, std::int64_t num_threads, Run run) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&](std::int64_t worker) {
    try {
      for (std::int64_t task = next++; task < num_tasks; task = next++) run(task, worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
      next = num_tasks;
    }
  };
  std::vector<std::thread> threads;
  const std::int64_t workers = std::min(num_tasks, num_threads);
  if (workers > 1) threads.reserve(static_cast<std::size_t>(workers - 1));
  try {
    for (std::int64_t worker = 1; worker < workers; ++worker) threads.emplace_back(work, worker);
  } catch (const std::exception&) {
    // no more threads: those there are do the work
  }
  work(0);
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace fastmpi
