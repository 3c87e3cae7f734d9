// A team of which one member fails, for test_team.py.

#include "../../kernels/trimtab_kernels/decode_step/cpu_team.h"

#include <stdexcept>

// Has every thread meet the others `rounds` times, but for the one that stands for member `failing`:
// that one throws at the last. Returns how many threads met to the end, or -1 if it threw.
extern "C" int64_t team_of(int64_t rounds, int64_t failing) {
  std::atomic<int64_t> ended{0};
  try {
    trimtab::run_team([&](const trimtab::Member& member) {
      for (int64_t round = 0; round < rounds; ++round) {
        if (round == rounds - 1 && member.first <= failing && failing < member.last) {
          throw std::runtime_error("failed");
        }
        member.meet();
      }
      ++ended;
    });
  } catch (const std::runtime_error&) {
    return -1;
  }
  return ended;
}
