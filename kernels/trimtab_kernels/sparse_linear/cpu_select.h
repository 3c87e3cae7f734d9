// Selection of the largest entries of a row, by bisection over the bits of their magnitudes.

#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "../cpu_common.h"

namespace trimtab {

// With fewer entries, a thread costs more to wake than it saves.
constexpr int64_t kSelectGrain = 16 * 1024;

// The bits of |value|, which, as integers, are ordered by magnitude; every NaN is the largest.
inline int32_t magnitude(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::min(bits & 0x7fffffff, 0x7f800001);
}
inline int32_t magnitude(BFloat16 value) {
  return magnitude(widen(value));
}
inline int32_t magnitude(Half value) {
  return magnitude(widen(value));
}
inline int64_t magnitude(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::min<int64_t>(bits & 0x7fffffffffffffff, 0x7ff0000000000001);
}

template <typename Key>
int64_t count_from(const Key* keys, int64_t width, Key bound) {
  Key count = 0;  // as wide as the keys, so that the loop vectorizes
  for (int64_t i = 0; i < width; ++i) {
    count += keys[i] >= bound;
  }
  return count;
}

template <typename T>
void select(const T* x, T* out, int64_t width, int64_t keep, double threshold, void* scratch) {
  using Key = decltype(magnitude(T()));
  Key* const keys = static_cast<Key*>(scratch);
  const auto limit = static_cast<decltype(widen(T()))>(threshold);
  Key largest = 0;
  int64_t passing = 0;
  for (int64_t i = 0; i < width; ++i) {
    const bool passes = !(std::abs(widen(x[i])) < limit);
    keys[i] = passes ? magnitude(x[i]) : Key(-1);
    passing += passes;
    largest = std::max(largest, keys[i]);
  }
  // Bisection for the largest bound that at least `keep` keys reach.
  Key low = 0, high = largest + 1;
  int64_t reached = passing;
  if (keep == 0) {
    low = high;
    reached = 0;
  }
  while (reached > keep && high - low > 1) {
    const Key middle = low + (high - low) / 2;
    const int64_t count = count_from(keys, width, middle);
    if (count >= keep) {
      low = middle;
      reached = count;
    } else {
      high = middle;
    }
  }
  // If more than `keep` reach the bound, some are equal to it: the last of those are dropped.
  int64_t surplus = std::max<int64_t>(reached - keep, 0);
  for (int64_t i = width; surplus > 0;) {
    if (keys[--i] == low) {
      keys[i] = -1;
      --surplus;
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    out[i] = keys[i] >= low ? x[i] : T(0);
  }
}

// Returns x with at most `keep` entries per row, none of them below the threshold.
inline Tensor select_rows(const Tensor& x, int64_t keep, double threshold) {
  const Tensor rows = x.contiguous();
  const Tensor out = at::empty(x.sizes(), x.options());
  const int64_t width = x.size(-1);
  if (x.numel() == 0) {
    return out;
  }
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* const source = rows.const_data_ptr<T>();
    T* const target = out.mutable_data_ptr<T>();
    parallel_for(x.numel() / width, std::max<int64_t>(1, kSelectGrain / width),
                 [&](int64_t begin, int64_t end) {
                   const std::unique_ptr<int64_t[]> scratch(new int64_t[width]);
                   for (int64_t row = begin; row < end; ++row) {
                     select(source + row * width, target + row * width, width, keep, threshold,
                            scratch.get());
                   }
                 });
  };
  switch (x.scalar_type()) {
    case at::kFloat:
      run(float());
      break;
    case at::kBFloat16:
      run(BFloat16());
      break;
    case at::kHalf:
      run(Half());
      break;
    default:
      run(double());
  }
  return out;
}

}  // namespace trimtab
