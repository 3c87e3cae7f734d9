// The threads of a step: they stay awake in it, and meet at barriers.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <vector>

#include "../cpu_common.h"

namespace trimtab {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Members wait for each other by spinning, since waking a thread takes longer than most of the work
// between two meetings. A member that has spun for some tens of microseconds lets others run: one
// that was descheduled costs the team no more than a time slice.
class Barrier {
 public:
  // Thrown by a member that waits for one that will never come.
  struct Abandoned {};

  explicit Barrier(int64_t members) : members_(members) {}

  void abandon() { abandoned_.store(true, std::memory_order_release); }

  // Waits until all members have arrived; one thread may stand for several.
  void meet(int64_t members) {
    constexpr int kSpins = 1000;
    if (members == members_) {
      return;
    }
    const uint64_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(members, std::memory_order_acq_rel) + members == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        sched_yield();
      }
      if (abandoned_.load(std::memory_order_acquire)) {
        throw Abandoned();
      }
    }
  }

 private:
  const int64_t members_;
  alignas(kCacheLineBytes) std::atomic<int64_t> arrived_{0};
  alignas(kCacheLineBytes) std::atomic<uint64_t> round_{0};
  alignas(kCacheLineBytes) std::atomic<bool> abandoned_{false};
};

// Numbers [begin, end).
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// What one thread stands for: members [first, last) of the team.
struct Member {
  int64_t first, last, team;
  Barrier& barrier;

  void meet() const { barrier.meet(last - first); }
  // This thread's part of [0, count), in multiples of `step`.
  Range share(int64_t count, int64_t step = 1) const {
    const int64_t steps = (count + step - 1) / step;
    const auto bound = [&](int64_t member) {
      return std::min(count, steps * member / team * step);
    };
    return {bound(first), bound(last)};
  }
};

// Calls `body` with the Member of every thread, all at the same time. What one of them throws is
// thrown on once all have ended.
template <typename F>
void run_team(const F& body) {
  const int64_t team = thread_count();
  Barrier barrier(team);
  std::vector<std::exception_ptr> errors(team);
  parallel_for(team, 1, [&](int64_t first, int64_t last) {
    try {
      body(Member{first, last, team, barrier});
    } catch (const Barrier::Abandoned&) {
    } catch (...) {
      errors[first] = std::current_exception();
      barrier.abandon();
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
}

}  // namespace trimtab
