// What a step does with single vectors: norms, rotations, activation functions.

#pragma once

#include <cmath>

#include "../decode_attention/cpu_softmax.h"
#include "cpu_parts.h"

namespace trimtab {

template <typename F>
inline float sum_of(int64_t count, const F& term) {
  Vector sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    sums += term(i, Vector{});
  }
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    total += sums[lane];
  }
  for (; i < count; ++i) {
    total += term(i, 0.0f);
  }
  return total;
}

inline float load_as(const float* source, float) {
  return *source;
}
inline Vector load_as(const float* source, Vector) {
  return load(source);
}

// Weights are T. `x` and `out` may be the same.
template <typename T>
inline void normalize(const Norm& norm, const float* x, float* out) {
  const int64_t width = norm.weight.numel();
  float mean = 0;
  if (norm.centers) {
    mean = sum_of(width, [&](int64_t i, auto kind) { return load_as(x + i, kind); }) / width;
  }
  const float squares = sum_of(width, [&](int64_t i, auto kind) {
    const auto centered = load_as(x + i, kind) - mean;
    return centered * centered;
  });
  const float factor = 1 / std::sqrt(squares / width + norm.epsilon);
  const T* const weight = norm.weight.const_data_ptr<T>();
  for (int64_t i = 0; i < width; ++i) {
    out[i] = (x[i] - mean) * factor * (widen(weight[i]) + norm.offset);
  }
  const T* const bias = norm.bias.defined() ? norm.bias.const_data_ptr<T>() : nullptr;
  for (int64_t i = 0; bias && i < width; ++i) {
    out[i] += widen(bias[i]);
  }
}

// Entry i of a head is paired with entry i + rotated / 2. Tables are T.
template <typename T>
inline void rotate(const Tensor& cos, const Tensor& sin, int64_t position, float* head) {
  const int64_t rotated = cos.size(1), half = rotated / 2;
  const T* const c = cos.const_data_ptr<T>() + position * cos.stride(0);
  const T* const s = sin.const_data_ptr<T>() + position * sin.stride(0);
  for (int64_t i = 0; i < half; ++i) {
    const float first = head[i], second = head[half + i];
    head[i] = first * widen(c[i]) - second * widen(s[i]);
    head[half + i] = second * widen(c[half + i]) + first * widen(s[half + i]);
  }
}

// 1 / (1 + exp(-x))
inline Vector sigmoid(Vector x) {
  const Vector positive = x > 0.0f ? x : -x;
  const Vector small = exp(-positive);
  return (x > 0.0f ? Vector{} + 1.0f : small) / (1.0f + small);
}

inline Vector activated(Activation kind, Vector x) {
  if (kind == Activation::silu) {
    return x * sigmoid(x);
  }
  if (kind == Activation::relu) {
    return x > 0.0f || x != x ? x : Vector{};
  }
  if (kind == Activation::gelu_tanh) {
    // (1 + tanh(y)) / 2 is the sigmoid of 2 y.
    constexpr float kTwiceRoot = 1.5957691216f;  // 2 * sqrt(2 / pi)
    return x * sigmoid(kTwiceRoot * (x + 0.044715f * x * x * x));
  }
  Vector result;
  for (int lane = 0; lane < kLanes; ++lane) {
    result[lane] = 0.5f * x[lane] * (1 + std::erf(x[lane] * 0.70710678f));
  }
  return result;
}

// out[i] = activation(gate[i]) * up[i], without the last factor if `up` is null
inline void activate(Activation kind, const float* gate, const float* up, int64_t count,
                     float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, count - i);
    Vector x = {};
    std::memcpy(&x, gate + i, lanes * sizeof(float));
    x = activated(kind, x);
    std::memcpy(out + i, &x, lanes * sizeof(float));
  }
  for (int64_t i = 0; up && i < count; ++i) {
    out[i] *= up[i];
  }
}

}  // namespace trimtab
