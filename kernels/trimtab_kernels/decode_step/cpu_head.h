// Which token has the largest logit, without reading the whole head. An int8 copy of the head gives
// every logit up to a bound, which rules out all tokens but a few; their logits are then computed
// from the head itself, in the order of sums that a step uses. So the token is the same.

#pragma once

#include <cfloat>
#include <limits>

#include "cpu_products.h"

namespace trimtab {

class QuantizedHead {
 public:
  // Whether there is such a copy of a head: its outputs are contiguous rows, and nothing is added.
  static bool fits(const Linear& head) { return head.output_major() && !head.bias.defined(); }

  // Makes the copy anew of what has changed in the head since the last time.
  template <typename T>
  void refresh(const Linear& head) {
    const int64_t width = head.inputs(), outputs = head.outputs();
    numbers_.resize(outputs * width);
    scales_.resize(outputs);
    radii_.resize(outputs);
    const T* const weight = head.weight.const_data_ptr<T>();
    const int64_t apart = head.weight.stride(1);
    const int64_t parts = (outputs + kPart - 1) / kPart;
    digests_.resize(parts);
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t last = std::min(outputs, (part + 1) * kPart);
        Digest digest;
        for (int64_t o = part * kPart; o < last; ++o) {
          digest.add(weight + o * apart, width);
        }
        if (digest.value() != digests_[part]) {
          for (int64_t o = part * kPart; o < last; ++o) {
            quantize(weight + o * apart, width, o);
          }
          digests_[part] = digest.value();
        }
      }
    });
  }

  // Logits of outputs [range), up to `radius(o)` times the length of the row of activations.
  void approximate(const Input& in, Range range, float* out, int64_t stride) const {
    dot_products(in, numbers_.data(), in.width, range, out, stride);
    for (int64_t r = 0; r < in.rows; ++r) {
      for (int64_t o = 0; o < range.size(); ++o) {
        out[r * stride + o] *= scales_[range.begin + o];
      }
    }
  }
  float radius(int64_t output) const { return radii_[output]; }
  // What `radius` is to be multiplied by for activations of this length.
  static float reach(double length) {
    return length < kLongest ? static_cast<float>(length) * (1 + 2 * FLT_EPSILON)
                             : std::numeric_limits<float>::infinity();
  }
  bool made() const { return !digests_.empty(); }

 private:
  static constexpr int64_t kPart = 256;  // outputs with a digest of their own
  // Of vectors up to this length, no sum of products overflows, and the bounds hold.
  static constexpr double kLongest = 1e18;

  // Differs if one number does; if several do, very likely.
  class Digest {
   public:
    template <typename T>
    void add(const T* row, int64_t width) {
      const char* const bytes = reinterpret_cast<const char*>(row);
      const int64_t size = width * static_cast<int64_t>(sizeof(T));
      int64_t i = 0;
      for (; i + kBytes <= size; i += kBytes) {
        __builtin_prefetch(bytes + i + kAheadBytes);
        take(bytes + i, kBytes);
      }
      if (i < size) {
        take(bytes + i, size - i);
      }
    }
    uint64_t value() const {
      uint64_t result = 1;
      for (const Words& words : words_) {
        for (int lane = 0; lane < kLanes; ++lane) {
          result = (result ^ words[lane]) * 0x9E3779B97F4A7C15u;
        }
      }
      return result;
    }

   private:
    static constexpr int64_t kBytes = sizeof(Words);

    void take(const char* bytes, int64_t count) {
      Words words = {};
      std::memcpy(&words, bytes, count);
      Words& sums = words_[next_++ % kSums];
      // Turned, so that high bits reach low ones: otherwise, two changed signs would cancel out.
      sums = ((sums << 13) | (sums >> 19)) * 0x9E3779B1u + words;
    }

    static constexpr int kSums = 4;  // side by side, since a product takes several cycles
    Words words_[kSums] = {};
    unsigned next_ = 0;
  };

  template <typename T>
  void quantize(const T* row, int64_t width, int64_t output) {
    float largest = 0;
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) {
      const float number = widen(row[i]);
      largest = std::max(largest, std::abs(number));
      squares += static_cast<double>(number) * number;
    }
    const float scale = largest / 127;
    double error = 0;
    for (int64_t i = 0; i < width; ++i) {
      const float steps = scale > 0 ? std::nearbyint(widen(row[i]) / scale) : 0.0f;
      // The scale of denormal numbers is a coarse one.
      const float kept = std::isfinite(steps) ? std::clamp(steps, -127.0f, 127.0f) : 0.0f;
      numbers_[output * width + i] = static_cast<int8_t>(kept);
      const double missing = widen(row[i]) - static_cast<double>(kept) * scale;
      error += missing * missing;
    }
    scales_[output] = std::isfinite(scale) ? scale : 0.0f;
    // By Cauchy-Schwarz, the product of what is missing with the activations. The rest is what the
    // rounding of two sums of `width` float32 products can be, and of what is computed with them.
    const double rounding = (2.0 * width + 16) * FLT_EPSILON;
    const double radius = std::sqrt(error) + rounding * (std::sqrt(squares) + std::sqrt(error));
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    radii_[output] = squares < kLongest * kLongest
                         ? std::nextafter(static_cast<float>(radius), kInfinity)
                         : kInfinity;
  }

  std::vector<int8_t> numbers_;
  std::vector<float> scales_, radii_;
  std::vector<uint64_t> digests_;
};

// The largest of the logits seen, as argmax has it: a NaN is the largest, and the first one counts.
struct Largest {
  int64_t token = -1;
  float logit = 0;

  void see(int64_t other, float value) {
    if (token < 0 || value > logit || (std::isnan(value) && !std::isnan(logit))) {
      token = other;
      logit = value;
    }
  }
};

// A logit as it is stored: soft-capped, and rounded to T.
template <typename T>
inline T stored_logit(float logit, const std::optional<double>& softcap) {
  if (softcap) {
    const float cap = static_cast<float>(*softcap);
    logit = cap * std::tanh(logit / cap);
  }
  return static_cast<T>(logit);
}

// Below this, no logit can be stored as a number as large as `logit` is.
template <typename T>
inline float cut_below(float logit, const std::optional<double>& softcap) {
  constexpr double kRounding = sizeof(T) == 2 ? 0x1p-6 : 0x1p-21;
  if (!softcap) {
    return static_cast<float>(logit - std::abs(logit) * kRounding) - FLT_MIN;
  }
  const double share = std::tanh(logit / *softcap) - (kRounding + 1e-6);
  // Close to its ends the function is flat: there, everything is as large.
  return share > -1 ? static_cast<float>(*softcap * std::atanh(share) - 1e-5 * *softcap)
                    : -std::numeric_limits<float>::infinity();
}

}  // namespace trimtab
