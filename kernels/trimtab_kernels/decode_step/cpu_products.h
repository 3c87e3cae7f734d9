// Products of a few rows of activations with some of the outputs of a linear layer.

#pragma once

#include <bit>

#include "../decode_attention/cpu_products.h"
#include "../sparse_linear/cpu_gather.h"
#include "cpu_parts.h"
#include "cpu_team.h"

namespace trimtab {

// Rows of activations that a thread has prepared for itself, with zeros where they were dropped.
struct Input {
  int64_t rows = 0, width = 0;
  std::vector<float> numbers;  // [rows, width]
  std::vector<BFloat16> halves;  // the same, where they are multiplied by pairs
  // The entries that at least one row keeps: their indices, and their values by row.
  std::vector<int64_t> indices;
  std::vector<float> values;  // [rows, count], rows `width` apart
  int64_t count = 0;

  void resize(int64_t new_rows, int64_t new_width) {
    rows = new_rows;
    width = new_width;
    numbers.resize(std::max<size_t>(numbers.size(), rows * width));
    values.resize(std::max<size_t>(values.size(), rows * width));
    indices.resize(std::max<size_t>(indices.size(), width));
  }
  float* row(int64_t index) { return numbers.data() + index * width; }
  const float* row(int64_t index) const { return numbers.data() + index * width; }
  // A row as it is multiplied with weights of type W.
  template <typename W>
  auto factors(int64_t index) const {
    if constexpr (kByPairs<W>) {
      return halves.data() + index * width;
    } else {
      return row(index);
    }
  }

  // Once the rows are made: rounds them as they are to be multiplied in a model of dtype T.
  template <typename T>
  void round() {
    if constexpr (kByPairs<T>) {
      halves.resize(std::max<size_t>(halves.size(), rows * width));
      for (int64_t i = 0; i < rows * width; ++i) {
        halves[i] = static_cast<BFloat16>(numbers[i]);
        numbers[i] = widen(halves[i]);
      }
    }
  }

  // The entries kept in the first or the second half of the width.
  Range kept_in(int64_t half) const {
    const auto begin = indices.begin();
    const int64_t middle = std::lower_bound(begin, begin + count, width / 2) - begin;
    return half == 0 ? Range{0, middle} : Range{middle, count};
  }

  void compact() {
    count = 0;
    for (int64_t i = 0; i < width; ++i) {
      bool any = false;
      for (int64_t r = 0; r < rows; ++r) {
        const float value = numbers[r * width + i];
        values[r * width + count] = value;
        any |= value != 0;
      }
      indices[count] = i;
      count += any;
    }
  }
};

// The most rows of activations that are multiplied at a time, and the most outputs whose weights are
// then read side by side: as registers allow.
constexpr int kDotRows = kLanes == 16 ? 8 : 4;
constexpr int kDotOutputs = kLanes == 16 ? 4 : 2;

// The numbers of a vector from c on, with zeros after its end, where nothing is read.
template <typename N, typename T>
inline N numbers_from(const T* source, int64_t c, int64_t width) {
  constexpr int64_t kCount = std::is_same_v<N, Pairs> ? 2 * kLanes : kLanes;
  if (c + kCount <= width) {
    return load_as<N>(source + c);
  }
  T padded[kCount] = {};
  std::memcpy(padded, source + c, (width - c) * sizeof(T));
  return load_as<N>(padded);
}

// Weights are fetched this far ahead. The processor's own prefetcher follows one stream a page, and
// rows read side by side are several.
constexpr int64_t kAheadBytes = 8192;

// products[r * apart + o] = lane by lane, the product of row r with output o
template <int R, int O, typename X, typename T>
inline void dot(const X* x, const T* const* outputs, int64_t width, int apart, Vector* products) {
  using Numbers = std::conditional_t<std::is_same_v<X, BFloat16>, Pairs, Vector>;
  constexpr int64_t kStep = sizeof(Vector) / sizeof(X);
  Vector sums[R][O] = {};
  const auto add = [&](const auto& row_at, const auto& weights_at) {
    Numbers rows[R];
    for (int r = 0; r < R; ++r) {
      rows[r] = row_at(r);
    }
    for (int o = 0; o < O; ++o) {
      const Numbers weights = weights_at(o);
      for (int r = 0; r < R; ++r) {
        sums[r][o] = add_product(sums[r][o], rows[r], weights);
      }
    }
  };
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) {
    add([&](int r) { return load_as<Numbers>(x + r * width + c); },
        [&](int o) {
          __builtin_prefetch(reinterpret_cast<const char*>(outputs[o] + c) + kAheadBytes);
          return load_as<Numbers>(outputs[o] + c);
        });
  }
  if (c < width) {
    add([&](int r) { return numbers_from<Numbers>(x + r * width, c, width); },
        [&](int o) { return numbers_from<Numbers>(outputs[o], c, width); });
  }
  for (int r = 0; r < R; ++r) {
    for (int o = 0; o < O; ++o) {
      products[r * apart + o] = sums[r][o];
    }
  }
}

// out[r * stride + o] = the product of row r with output o. Every sum is built in one order, whatever
// is multiplied beside it.
template <int R, typename X, typename T>
void dots(const X* x, int64_t width, const T* weight, int64_t outputs_apart, int64_t outputs,
          float* out, int64_t stride) {
  // Outputs whose lanes are added up together, with the lanes of a row left idle if R is 3, 5, ...
  constexpr int kTogether = kLanes / std::bit_ceil(unsigned{R});
  constexpr int kBeside = std::min(kTogether, kDotOutputs);
  for (int64_t first = 0; first < outputs; first += kTogether) {
    const int64_t count = std::min<int64_t>(kTogether, outputs - first);
    const T* rows[kTogether];
    for (int o = 0; o < kTogether; ++o) {  // after the end, the last one again: it is not stored
      rows[o] = weight + (first + std::min<int64_t>(o, count - 1)) * outputs_apart;
    }
    Vector products[kLanes] = {};
    for (int o = 0; o < kTogether; o += kBeside) {
      dot<R, kBeside>(x, rows + o, width, kTogether, products + o);
    }
    const Vector sums = sums_of(products);
    for (int r = 0; r < R; ++r) {
      std::memcpy(out + r * stride + first, reinterpret_cast<const float*>(&sums) + r * kTogether,
                  count * sizeof(float));
    }
  }
}

// The same for any number of rows, as many at a time as possible.
template <int R = kDotRows, typename X, typename T>
void dots_of_rows(const X* x, int64_t rows, int64_t width, const T* weight, int64_t outputs_apart,
                  int64_t outputs, float* out, int64_t stride) {
  if (rows >= R) {
    dots<R>(x, width, weight, outputs_apart, outputs, out, stride);
    dots_of_rows<R>(x + R * width, rows - R, width, weight, outputs_apart, outputs,
                    out + R * stride, stride);
  } else if constexpr (R > 1) {
    dots_of_rows<R - 1>(x, rows, width, weight, outputs_apart, outputs, out, stride);
  }
}

// Outputs [range) of a weight whose outputs are rows, `apart` numbers apart; out[r * stride] belongs to
// the first of them.
template <typename W>
void dot_products(const Input& in, const W* weight, int64_t apart, Range range, float* out,
                  int64_t stride) {
  for (int64_t o = range.begin; o < range.end; o += kLanes) {
    dots_of_rows(in.factors<W>(0), in.rows, in.width, weight + o * apart, apart,
                 std::min<int64_t>(kLanes, range.end - o), out + o - range.begin, stride);
  }
}

// Outputs [range) of an input-major weight, of which only what some kept entries multiply is read.
template <typename W>
void multiply_input_major(const Linear& linear, const Input& in, Range entries, Range range,
                          float* out, int64_t stride) {
  const W* const weight = linear.weight.const_data_ptr<W>() + range.begin;
  const int64_t apart = linear.weight.stride(0);
  for (int64_t r = 0; r < in.rows; ++r) {
    std::fill_n(out + r * stride, range.size(), 0.0f);
  }
  for (int64_t c = 0; c < range.size(); c += kColumnBlock) {
    const int64_t block = std::min(kColumnBlock, range.size() - c);
    const auto row_of = [&](int64_t i) { return weight + in.indices[i] * apart + c; };
    add_entries_of_tokens(in.rows, out + c, stride, row_of, entries.begin, entries.end,
                          in.values.data(), in.width, block);
  }
}

// Outputs [range) of a linear layer with its bias. Those of an input-major weight are the sum of two
// results, one a half of the inputs, of which `half` is made.
template <typename T>
void multiply(const Linear& linear, const Input& in, int64_t half, Range range, float* out,
              int64_t stride) {
  if (range.size() <= 0) {
    return;
  }
  if (linear.output_major()) {
    dot_products(in, linear.weight.const_data_ptr<T>(), linear.weight.stride(1), range, out, stride);
  } else if (linear.weight.scalar_type() == at::kChar) {
    multiply_input_major<int8_t>(linear, in, in.kept_in(half), range, out, stride);
  } else {
    multiply_input_major<T>(linear, in, in.kept_in(half), range, out, stride);
  }
  const auto entries = [&](const Tensor& vector, auto zero) {
    using V = decltype(zero);
    return vector.defined() ? vector.const_data_ptr<V>() + range.begin : nullptr;
  };
  const float* const scale = entries(linear.scale, float());
  const T* const bias = entries(linear.bias, T());
  for (int64_t r = 0; r < in.rows; ++r) {
    for (int64_t o = 0; scale && o < range.size(); ++o) {
      out[r * stride + o] *= scale[o];
    }
    for (int64_t o = 0; bias && half == 0 && o < range.size(); ++o) {
      out[r * stride + o] += widen(bias[o]);
    }
  }
}

}  // namespace trimtab
