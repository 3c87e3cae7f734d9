// The softmax of scores that arrive block by block.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../cpu_vector.h"

namespace trimtab {

// exp(x) for x <= 0, to two units in the last place, and 0 if it is below 2^-126. Computed as 2^n
// times the Taylor series of exp on [-ln 2 / 2, ln 2 / 2]. NaN stays.
inline Vector exp(Vector x) {
  constexpr float kSmallest = -87.33654f;      // ln 2^-126
  constexpr float kRound = 12582912.0f;        // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLn2 = 0.693359375f;         // the first bits of ln 2, so that n * kLn2 is exact
  constexpr float kLn2Rest = -2.12194440e-4f;  // and the rest of them
  const Vector zero = {};
  const Vector clamped = x < kSmallest ? zero + kSmallest : x;
  const Vector n = (clamped * 1.44269504f + kRound) - kRound;
  const Vector rest = (clamped - n * kLn2) - n * kLn2Rest;
  Vector series = zero + 1.0f / 5040;
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    series = series * rest + coefficient;
  }
  const Integers bits = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector power;
  std::memcpy(&power, &bits, sizeof power);
  return x < kSmallest ? zero : series * power;
}

// For one query head and the tokens seen so far: the largest score, and the sum of
// exp(score - largest). The first is at least the lowest number, not minus infinity, whose
// difference from itself is NaN.
struct Softmax {
  float largest = std::numeric_limits<float>::lowest();
  float total = 0;

  // Turns the next scores into weights, exp(score - largest), followed by zeros up to the next
  // multiple of `step`, which is a multiple of kLanes. Returns the factor for earlier weights.
  float weigh(float* scores, int64_t tokens, int64_t step) {
    const int64_t end = (tokens + step - 1) / step * step;
    std::fill(scores + tokens, scores + end, -std::numeric_limits<float>::infinity());
    const float before = largest;
    Vector maxima = Vector{} + before;
    for (int64_t t = 0; t < end; t += kLanes) {
      const Vector block = load(scores + t);
      maxima = block > maxima ? block : maxima;  // NaN is never larger, and still reaches the sum
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      largest = std::max(largest, maxima[lane]);
    }
    Vector sums = {};
    for (int64_t t = 0; t < end; t += kLanes) {
      const Vector weights = exp(load(scores + t) - largest);
      store(scores + t, weights);
      sums += weights;
    }
    const float factor = std::exp(before - largest);
    total *= factor;
    for (int lane = 0; lane < kLanes; ++lane) {
      total += sums[lane];
    }
    return factor;
  }
};

}  // namespace trimtab
