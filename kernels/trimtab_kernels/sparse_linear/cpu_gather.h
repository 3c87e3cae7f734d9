// The gather-GEMV: the product of a few tokens with the weight rows that any of them keeps.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "../cpu_common.h"
#include "../cpu_vector.h"

namespace trimtab {

// Threads divide the kept rows first, and columns only into parts at least this wide: the
// processor prefetches one long row faster than pieces of many.
constexpr int64_t kMinColumns = 2048;
// Columns accumulated at a time: 32 KB of float32, which stay in the nearest caches.
constexpr int64_t kColumnBlock = 8192;
// Weight rows, and columns of them, that more than kMostBeside tokens process in turn: the first tokens
// load them into the first-level cache for the others.
constexpr int kTileRows = 8;
constexpr int64_t kTileColumns = 512;
// The most tokens whose sums are added to side by side.
constexpr int kMostBeside = 4;
// Weight rows added per pass over the sums of so many tokens, or else vectors of their sums that stay in
// registers, as registers allow. Both save loads and stores of the sums.
template <int R>
constexpr int kGroup = std::min(8, kLanes / R);

// sums[t * apart + c] += values[t * width] * rows[0][c] + values[t * width + 1] * rows[1][c] + ...
// for tokens 0 <= t < R, weight rows below G, and columns first <= c < last. Every sum is built in
// one order, whatever R and G are. On the way, the same columns of the rows `next` are fetched: rows
// are too short, and those that are kept too irregular, for the processor's own prefetcher. Fetching
// them one after another instead would leave the memory idle in between.
template <int R, int G, bool kFetch, typename W>
inline void add_rows(float* sums, int64_t apart, const W* const* rows, const W* const* next,
                     const float* values, int64_t width, int64_t first, int64_t last) {
  constexpr int64_t kLine = std::max<int64_t>(kLanes, kCacheLineBytes / sizeof(W));
  Vector factors[R][G];
  for (int t = 0; t < R; ++t) {
    for (int g = 0; g < G; ++g) {
      factors[t][g] = values[t * width + g] - Vector{};
    }
  }
  int64_t c = first;
  const auto add = [&] {
    Vector weights[G];
    for (int g = 0; g < G; ++g) {
      weights[g] = load(rows[g] + c);
    }
    for (int t = 0; t < R; ++t) {
      Vector sum = load(sums + t * apart + c);
      for (int g = 0; g < G; ++g) {
        sum += factors[t][g] * weights[g];
      }
      store(sums + t * apart + c, sum);
    }
    c += kLanes;
  };
  while (c + kLine <= last) {
    for (int g = 0; kFetch && g < G; ++g) {
      __builtin_prefetch(next[g] + c);
    }
    for (int64_t i = 0; i < kLine; i += kLanes) {
      add();
    }
  }
  while (c + kLanes <= last) {
    add();
  }
  for (; c < last; ++c) {
    for (int t = 0; t < R; ++t) {
      for (int g = 0; g < G; ++g) {
        sums[t * apart + c] += values[t * width + g] * widen(rows[g][c]);
      }
    }
  }
}

// sums[t * apart + c] += values[t * width + first] * row_of(first)[c] + ... up to entry `last`, for
// tokens 0 <= t < R and columns 0 <= c < columns.
template <int R, typename F>
void add_entries(float* sums, int64_t apart, const F& row_of, int64_t first, int64_t last,
                 const float* values, int64_t width, int64_t columns) {
  using Row = decltype(row_of(0));
  constexpr int G = kGroup<R>;
  Row rows[G], next[G];
  int64_t i = first;
  for (; i + G <= last; i += G) {
    for (int g = 0; g < G; ++g) {
      rows[g] = row_of(i + g);
      next[g] = row_of(std::min(i + G + g, last - 1));
    }
    add_rows<R, G, true>(sums, apart, rows, next, values + i, width, 0, columns);
  }
  for (; i < last; ++i) {
    rows[0] = row_of(i);
    add_rows<R, 1, false>(sums, apart, rows, rows, values + i, width, 0, columns);
  }
}

// What add_rows does, for `count` weight rows: a few vectors of sums stay in registers meanwhile. Returns
// the column that it ends before.
template <int R, bool kFetch, typename W>
inline int64_t add_tile(float* sums, int64_t apart, const W* const* rows, const W* const* next,
                        int64_t count, const float* values, int64_t width, int64_t first,
                        int64_t last) {
  constexpr int64_t kLine = kCacheLineBytes / sizeof(W);
  constexpr int C = kGroup<R>;
  int64_t c = first;
  for (; c + C * kLanes <= last; c += C * kLanes) {
    Vector tile[R][C];
    for (int t = 0; t < R; ++t) {
      for (int v = 0; v < C; ++v) {
        tile[t][v] = load(sums + t * apart + c + v * kLanes);
      }
    }
    for (int64_t g = 0; g < count; ++g) {
      for (int64_t ahead = 0; kFetch && ahead < C * kLanes; ahead += kLine) {
        __builtin_prefetch(next[g] + c + ahead);
      }
      Vector weights[C];
      for (int v = 0; v < C; ++v) {
        weights[v] = load(rows[g] + c + v * kLanes);
      }
      for (int t = 0; t < R; ++t) {
        const Vector factor = values[t * width + g] - Vector{};
        for (int v = 0; v < C; ++v) {
          tile[t][v] += factor * weights[v];
        }
      }
    }
    for (int t = 0; t < R; ++t) {
      for (int v = 0; v < C; ++v) {
        store(sums + t * apart + c + v * kLanes, tile[t][v]);
      }
    }
  }
  return c;
}

// The same for any number of tokens, R at a time, and all columns; at least R if something is fetched.
template <int R, bool kFetch, typename W>
void add_tiles(int64_t tokens, float* sums, int64_t apart, const W* const* rows,
               const W* const* next, int64_t count, const float* values, int64_t width,
               int64_t first, int64_t last) {
  if (tokens >= R) {
    const int64_t rest =
        add_tile<R, kFetch>(sums, apart, rows, next, count, values, width, first, last);
    for (int64_t g = 0; g < count && rest < last; ++g) {
      add_rows<R, 1, false>(sums, apart, rows + g, next, values + g, width, rest, last);
    }
    add_tiles<R, false>(tokens - R, sums + R * apart, apart, rows, next, count, values + R * width,
                        width, first, last);
  } else if constexpr (R > 1) {
    add_tiles<R - 1, false>(tokens, sums, apart, rows, next, count, values, width, first, last);
  }
}

// What add_entries does, for more than kMostBeside tokens.
template <typename F>
void add_entries_in_tiles(int64_t tokens, float* sums, int64_t apart, const F& row_of,
                          int64_t first, int64_t last, const float* values, int64_t width,
                          int64_t columns) {
  decltype(row_of(0)) rows[kTileRows], next[kTileRows];
  for (int64_t i = first; i < last; i += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, last - i);
    for (int64_t g = 0; g < count; ++g) {
      rows[g] = row_of(i + g);
      next[g] = row_of(std::min(i + kTileRows + g, last - 1));
    }
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      add_tiles<kMostBeside, true>(tokens, sums, apart, rows, next, count, values + i, width, c,
                                   std::min(c + kTileColumns, columns));
    }
  }
}

template <int R = 1, typename... Arguments>
void add_entries_of_tokens(int64_t tokens, Arguments... arguments) {
  if (tokens == R) {
    add_entries<R>(arguments...);
  } else if constexpr (R < kMostBeside) {
    add_entries_of_tokens<R + 1>(tokens, arguments...);
  } else {
    add_entries_in_tiles(tokens, arguments...);
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
        float* const target = sums.get() + row_part * tokens * columns + c;
        for (int64_t t = 0; t < tokens; ++t) {
          std::fill_n(target + t * columns, block, 0.0f);
        }
        const auto row_of = [&](int64_t i) { return weight + kept.indices[i] * stride + c; };
        add_entries_of_tokens(tokens, target, columns, row_of, first, last, kept.values.get(), width,
                              block);
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
