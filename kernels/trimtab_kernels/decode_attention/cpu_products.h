// Products of the query heads of a KV head with a block of its keys, and of weights with values.
// Every row is read and widened once for as many heads as registers allow.

#pragma once

#include <algorithm>
#include <utility>

#include "../cpu_vector.h"

namespace trimtab {

// Tokens processed at a time: their intermediate results stay in the nearest cache.
constexpr int64_t kBlock = 64;
// Query heads by which a row of keys is multiplied at a time.
constexpr int kHeads = 4;
// Rows of values added per pass over the sums.
constexpr int kValueRows = 8;
static_assert(kBlock % kLanes == 0 && kBlock % kValueRows == 0 && kLanes % kHeads == 0);

// The rows of one head for a block of tokens.
template <typename T>
struct Rows {
  const T* first;
  int64_t stride, width;
  int64_t count;   // rows in the block
  int64_t beyond;  // rows from here to the end of the slot, to be prefetched

  // Beyond the end, the last row: its product is discarded.
  const T* row(int64_t i) const { return first + std::min(i, count - 1) * stride; }
  // The rows of a head are too far apart for the processor's own prefetcher.
  void prefetch_next(int64_t i) const {
    prefetch(first + std::min(i + kBlock, beyond - 1) * stride, width);
  }
  // The numbers of a row from c on, with zeros after its end, where nothing is read.
  Vector numbers(const T* row, int64_t c) const {
    if (c + kLanes <= width) {
      return load(row + c);
    }
    T padded[kLanes] = {};
    std::memcpy(padded, row + c, (width - c) * sizeof(T));
    return load(padded);
  }
};

// Adds neighbours at distance D: those of `a` in the lanes without bit D, of `b` in the others.
template <int D, int... I>
inline Vector fold(Vector a, Vector b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I & D ? kLanes + I : I)...) +
         __builtin_shufflevector(a, b, (I & D ? kLanes + I - D : I + D)...);
#else
  const Integers own = {(I & D ? kLanes + I : I)...};
  const Integers neighbour = {(I & D ? kLanes + I - D : I + D)...};
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, neighbour);
#endif
}

// The sum over the lanes of each of kLanes registers, which are overwritten.
template <int D = kLanes / 2>
inline Vector sums_of(Vector* registers) {
  for (int i = 0; i < D; ++i) {
    registers[i] = fold<D>(registers[i], registers[i + D],
                           std::make_integer_sequence<int, kLanes>());
  }
  if constexpr (D > 1) {
    return sums_of<D / 2>(registers);
  }
  return registers[0];
}

// scores[h * kBlock + t] = query[h * padded + ...] . keys.row(t), 0 <= h < H
template <int H, typename T>
void score(const float* query, int64_t padded, const Rows<T>& keys, float* scores) {
  constexpr int kRows = kLanes / H;
  for (int64_t t = 0; t < keys.count; t += kRows) {
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      rows[r] = keys.row(t + r);
      keys.prefetch_next(t + r);
    }
    Vector products[kLanes] = {};
    for (int64_t c = 0; c < keys.width; c += kLanes) {
      Vector heads[H];
      for (int h = 0; h < H; ++h) {
        heads[h] = load(query + h * padded + c);
      }
      for (int r = 0; r < kRows; ++r) {
        const Vector key = keys.numbers(rows[r], c);
        for (int h = 0; h < H; ++h) {
          products[h * kRows + r] += heads[h] * key;
        }
      }
    }
    const Vector sums = sums_of(products);
    for (int h = 0; h < H; ++h) {
      std::memcpy(scores + h * kBlock + t, reinterpret_cast<const float*>(&sums) + h * kRows,
                  kRows * sizeof(float));
    }
  }
}

// The same for any number of heads, in fours, then twos, then one.
template <int H = kHeads, typename T>
void score_all(int64_t heads, const float* query, int64_t padded, const Rows<T>& keys,
               float* scores) {
  int64_t h = 0;
  for (; h + H <= heads; h += H) {
    score<H>(query + h * padded, padded, keys, scores + h * kBlock);
  }
  if constexpr (H > 1) {
    score_all<H / 2>(heads - h, query + h * padded, padded, keys, scores + h * kBlock);
  }
}

// sums[h * padded + ...] += weights[h * kBlock + t] * values.row(t); the weights after that of the
// last row must be zero
template <typename T>
void add_values(int64_t heads, const float* weights, const Rows<T>& values, int64_t padded,
                float* sums) {
  for (int64_t t = 0; t < values.count; t += kValueRows) {
    const T* rows[kValueRows];
    for (int r = 0; r < kValueRows; ++r) {
      rows[r] = values.row(t + r);
      values.prefetch_next(t + r);
    }
    for (int64_t c = 0; c < values.width; c += kLanes) {
      Vector numbers[kValueRows];
      for (int r = 0; r < kValueRows; ++r) {
        numbers[r] = values.numbers(rows[r], c);
      }
      for (int64_t h = 0; h < heads; ++h) {
        const float* const weight = weights + h * kBlock + t;
        Vector total = load(sums + h * padded + c);
        for (int r = 0; r < kValueRows; ++r) {
          total += weight[r] * numbers[r];
        }
        store(sums + h * padded + c, total);
      }
    }
  }
}

}  // namespace trimtab
