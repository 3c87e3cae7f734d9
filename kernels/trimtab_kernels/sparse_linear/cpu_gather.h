// The gather-GEMV: the product of a few tokens with the weight rows that any of them keeps.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "../cpu_common.h"
#include "../cpu_vector.h"

namespace trimtab {

// Weight rows added per pass over the accumulators. This saves loads and stores of those, and keeps
// enough reads in flight to fill the memory bus.
constexpr int kGroup = 8;
// Threads divide the kept rows first, and columns only into parts at least this wide: the
// processor prefetches one long row faster than pieces of many.
constexpr int64_t kMinColumns = 2048;
// Columns accumulated at a time: 32 KB of float32, which stay in the nearest caches.
constexpr int64_t kColumnBlock = 8192;
// Columns of a group of weight rows that several tokens process in turn: 16 KB of float32, which
// the first token loads into the first-level cache for the others.
constexpr int64_t kTokenTile = 512;
// Rows this short end before the processor starts to prefetch them, so the next ones are prefetched
// explicitly: a 576 x 576 int8 weight is then read from memory in half the time. Longer rows would
// push each other out of the nearest cache.
constexpr int64_t kShortRowBytes = 2048;

// sums[c] += values[0] * rows[0][c] + ... + values[R - 1] * rows[R - 1][c], first <= c < last
template <int R, typename T>
inline void add_rows(float* sums, const T* const* rows, const float* values, int64_t first,
                     int64_t last) {
  int64_t c = first;
  for (; c + kLanes <= last; c += kLanes) {
    Vector sum = load(sums + c);
    for (int r = 0; r < R; ++r) {
      sum += values[r] * load(rows[r] + c);
    }
    std::memcpy(sums + c, &sum, sizeof sum);
  }
  for (; c < last; ++c) {
    for (int r = 0; r < R; ++r) {
      sums[c] += values[r] * widen(rows[r][c]);
    }
  }
}

// The entries of x that at least one token keeps: their indices, and their values by token.
struct Kept {
  std::unique_ptr<int64_t[]> indices;
  std::unique_ptr<float[]> values;  // [tokens, count], rows `width` apart
  int64_t count = 0;
};

template <typename T>
Kept compact(const T* x, int64_t tokens, int64_t width, float threshold) {
  Kept kept{std::unique_ptr<int64_t[]>(new int64_t[width]),
            std::unique_ptr<float[]>(new float[tokens * width])};
  const auto selected = [&](float value) { return !(std::abs(value) < threshold) && value != 0; };
  int64_t count = 0;
  for (int64_t i = 0; i < width; ++i) {
    bool any = false;
    for (int64_t t = 0; t < tokens; ++t) {
      const float value = widen(x[t * width + i]);
      const bool use = selected(value);
      kept.values[t * width + count] = use ? value : 0.0f;
      any |= use;
    }
    kept.indices[count] = i;
    count += any;
  }
  kept.count = count;
  return kept;
}

// `finish` turns the sum and the index of a column into the stored value.
template <typename W, typename T, typename F>
void gather(const Kept& kept, int64_t width, int64_t tokens, const W* weight, int64_t stride,
            int64_t columns, const F& finish, T* out) {
  const int64_t bytes = kept.count * columns * static_cast<int64_t>(sizeof(W));
  const int64_t threads = std::clamp<int64_t>(bytes / kMinBytesPerThread, 1, thread_count());
  const int64_t column_parts = std::clamp<int64_t>(columns / kMinColumns, 1, threads);
  const int64_t row_parts = threads / column_parts;
  const int64_t lines = (columns + kLanes - 1) / kLanes;
  const int64_t tile = tokens == 1 ? kColumnBlock : kTokenTile;
  const std::unique_ptr<float[]> sums(new float[row_parts * tokens * columns]);

  parallel_for(row_parts * column_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t row_part = part / column_parts, column_part = part % column_parts;
      const int64_t first = kept.count * row_part / row_parts;
      const int64_t last = kept.count * (row_part + 1) / row_parts;
      const int64_t left = lines * column_part / column_parts * kLanes;
      const int64_t right = std::min(columns, lines * (column_part + 1) / column_parts * kLanes);
      for (int64_t c = left; c < right; c += kColumnBlock) {
        const int64_t block = std::min(kColumnBlock, right - c);
        const int64_t ahead = block * static_cast<int64_t>(sizeof(W)) <= kShortRowBytes ? last : 0;
        float* const target = sums.get() + row_part * tokens * columns + c;
        for (int64_t t = 0; t < tokens; ++t) {
          std::fill_n(target + t * columns, block, 0.0f);
        }
        const W* rows[kGroup];
        int64_t i = first;
        for (; i + kGroup <= last; i += kGroup) {
          for (int r = 0; r < kGroup; ++r) {
            rows[r] = weight + kept.indices[i + r] * stride + c;
          }
          for (int64_t next = i + kGroup; next < std::min(i + 2 * kGroup, ahead); ++next) {
            prefetch(weight + kept.indices[next] * stride + c, block);
          }
          for (int64_t begin = 0; begin < block; begin += tile) {
            for (int64_t t = 0; t < tokens; ++t) {
              add_rows<kGroup>(target + t * columns, rows, kept.values.get() + t * width + i, begin,
                               std::min(begin + tile, block));
            }
          }
        }
        for (; i < last; ++i) {
          rows[0] = weight + kept.indices[i] * stride + c;
          for (int64_t t = 0; t < tokens; ++t) {
            add_rows<1>(target + t * columns, rows, kept.values.get() + t * width + i, 0, block);
          }
        }
      }
    }
  });

  for (int64_t part = 1; part < row_parts; ++part) {
    const float* const partial = sums.get() + part * tokens * columns;
    for (int64_t i = 0; i < tokens * columns; ++i) {
      sums[i] += partial[i];
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < columns; ++c) {
      out[t * columns + c] = static_cast<T>(finish(sums[t * columns + c], c));
    }
  }
}

}  // namespace trimtab
