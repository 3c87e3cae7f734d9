// Where the time of a step goes.

#pragma once

#include <array>
#include <chrono>
#include <cstddef>

namespace trimtab {

enum class Work { inputs, transforms, linear_layers, attention, head, waiting };

constexpr std::array kWorkNames{"inputs", "transforms", "linear layers", "attention", "head", "waiting"};

// The time of one thread by its work, of which none is left out.
class Times {
 public:
  using Clock = std::chrono::steady_clock;

  // Begins at a moment; the thread is so much of its team.
  void start(Clock::time_point at, double share) {
    last_ = at;
    share_ = share;
  }
  // What has passed since the last end, or the start, went to `work`.
  void end(Work work) {
    const auto now = Clock::now();
    seconds_[static_cast<size_t>(work)] +=
        share_ * std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  double seconds(size_t work) const { return seconds_[work]; }

 private:
  Clock::time_point last_;
  double share_ = 0;
  std::array<double, kWorkNames.size()> seconds_{};
};

}  // namespace trimtab
