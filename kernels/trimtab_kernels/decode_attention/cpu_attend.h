// Attention of one decode step: threads process parts of slots, which are then combined.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "../cpu_common.h"
#include "cpu_products.h"
#include "cpu_softmax.h"

namespace trimtab {

// Tokens of a slot in one part. Where parts begin, and in what order they are combined, depends on
// the slot alone: neither other slots nor the number of threads changes any bit.
constexpr int64_t kPart = 256;
// A multiple of what the softmax and the product process at a time.
constexpr int64_t kStep = std::max<int64_t>(kLanes, kValueRows);

struct Options {
  double scale;
  std::optional<int64_t> window;
  std::optional<double> softcap;
};

template <typename T>
class Attention {
 public:
  Attention(const Tensor& query, const Tensor& keys, const Tensor& values,
            const std::vector<int64_t>& lengths, const Options& options)
      : query_(query), keys_(keys), values_(values), lengths_(lengths), options_(options) {
    for (size_t slot = 0; slot < lengths.size(); ++slot) {
      const int64_t span = std::min(lengths[slot], options.window.value_or(lengths[slot]));
      starts_.push_back(lengths[slot] - span);
      parts_.push_back(parts_.back() + (span + kPart - 1) / kPart);
    }
  }

  void run(T* out) {
    const int64_t slots = static_cast<int64_t>(lengths_.size());
    const int64_t rows = parts_.back() * kv_heads_ * group_;
    // Kept between calls: new pages would cost more than the writes to them.
    thread_local std::vector<float> sums;
    thread_local std::vector<Softmax> softmaxes;
    sums.resize(std::max<size_t>(sums.size(), rows * padded_));
    softmaxes.resize(std::max<size_t>(softmaxes.size(), rows));
    sums_ = sums.data();
    softmaxes_ = softmaxes.data();
    const std::unique_ptr<std::atomic<int64_t>[]> missing(
        new std::atomic<int64_t>[slots * kv_heads_]);
    for (int64_t slot = 0; slot < slots; ++slot) {
      const int64_t count = parts_[slot + 1] - parts_[slot];
      std::fill_n(missing.get() + slot * kv_heads_, kv_heads_, count);
      if (count == 0) {
        std::fill_n(out + slot * kv_heads_ * group_ * width_, kv_heads_ * group_ * width_, T(0));
      }
    }

    const int64_t part_bytes = 2 * kPart * width_ * static_cast<int64_t>(sizeof(T));
    const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / (part_bytes + 1));
    parallel_for(parts_.back() * kv_heads_, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[group_ * (kv_heads_ * padded_ + kBlock)]());
      while (begin < end) {
        const int64_t part = begin / kv_heads_, first = begin % kv_heads_;
        const int64_t last = std::min(kv_heads_, first + end - begin);
        const auto after = std::upper_bound(parts_.begin(), parts_.end(), part);
        const int64_t slot = after - parts_.begin() - 1;
        attend(slot, part, first, last, scratch.get());
        // The thread that finishes a slot's last part combines them, so none waits for others.
        for (int64_t head = first; head < last; ++head) {
          const int64_t pair = slot * kv_heads_ + head;
          if (missing[pair].fetch_sub(1, std::memory_order_acq_rel) == 1) {
            combine(slot, head, out + pair * group_ * width_);
          }
        }
        begin += last - first;
      }
    });
  }

 private:
  // Index of the intermediate results of a part and a query head.
  int64_t row(int64_t part, int64_t head) const { return part * kv_heads_ * group_ + head; }

  // One part of a slot for some KV heads, block by block, so that memory is read nearly in order.
  void attend(int64_t slot, int64_t part, int64_t first, int64_t last, float* scratch) {
    float* const query = scratch + group_ * kBlock;
    const T* const source = query_.template const_data_ptr<T>() + slot * query_.stride(0);
    for (int64_t head = first * group_; head < last * group_; ++head) {
      for (int64_t c = 0; c < width_; ++c) {
        query[head * padded_ + c] =
            widen(source[head * width_ + c]) * static_cast<float>(options_.scale);
      }
      std::fill_n(sums_ + row(part, head) * padded_, padded_, 0.0f);
      softmaxes_[row(part, head)] = Softmax();
    }
    int64_t token = starts_[slot] + (part - parts_[slot]) * kPart;
    const int64_t end = std::min(lengths_[slot], token + kPart);
    for (; token < end; token += kBlock) {
      for (int64_t kv_head = first; kv_head < last; ++kv_head) {
        const auto rows = [&](const Tensor& cache) {
          return Rows<T>{cache.template const_data_ptr<T>() + slot * cache.stride(0) +
                             token * cache.stride(1) + kv_head * cache.stride(2),
                         cache.stride(1), width_, std::min(kBlock, end - token),
                         lengths_[slot] - token};
        };
        attend_block(row(part, kv_head * group_), query + kv_head * group_ * padded_,
                     rows(keys_), rows(values_), scratch);
      }
    }
  }

  // One KV head and one block; the results of its query heads begin at `row`.
  void attend_block(int64_t row, const float* query, const Rows<T>& keys, const Rows<T>& values,
                    float* scores) {
    score_all(group_, query, padded_, keys, scores);
    for (int64_t h = 0; h < group_; ++h) {
      float* const own = scores + h * kBlock;
      if (options_.softcap) {
        const float cap = static_cast<float>(*options_.softcap);
        std::transform(own, own + keys.count, own,
                       [&](float score) { return cap * std::tanh(score / cap); });
      }
      const float factor = softmaxes_[row + h].weigh(own, keys.count, kStep);
      float* const sums = sums_ + (row + h) * padded_;
      std::transform(sums, sums + padded_, sums, [&](float sum) { return sum * factor; });
    }
    add_values(group_, scores, values, padded_, sums_ + row * padded_);
  }

  // Combines the parts of one KV head's query heads, first to last.
  void combine(int64_t slot, int64_t kv_head, T* out) {
    const int64_t first = parts_[slot], last = parts_[slot + 1];
    for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head) {
      Softmax whole;
      for (int64_t part = first; part < last; ++part) {
        whole.largest = std::max(whole.largest, softmaxes_[row(part, head)].largest);
      }
      float* const mixed = sums_ + row(first, head) * padded_;
      for (int64_t part = first; part < last; ++part) {
        const float factor = std::exp(softmaxes_[row(part, head)].largest - whole.largest);
        const float* const sums = sums_ + row(part, head) * padded_;
        whole.total += factor * softmaxes_[row(part, head)].total;
        for (int64_t c = 0; c < width_; ++c) {
          mixed[c] = factor * sums[c] + (part == first ? 0.0f : mixed[c]);
        }
      }
      for (int64_t c = 0; c < width_; ++c) {
        *out++ = static_cast<T>(mixed[c] / whole.total);
      }
    }
  }

  const Tensor &query_, &keys_, &values_;
  const std::vector<int64_t>& lengths_;
  const Options options_;
  const int64_t width_ = query_.size(2), kv_heads_ = keys_.size(2);
  const int64_t group_ = query_.size(1) / kv_heads_;
  const int64_t padded_ = (width_ + kLanes - 1) / kLanes * kLanes;
  // By slot, the first token attended to, and the index of the first part. The last of the indices
  // is the number of parts.
  std::vector<int64_t> starts_, parts_ = {0};
  // By part and query head.
  float* sums_ = nullptr;
  Softmax* softmaxes_ = nullptr;
};

}  // namespace trimtab
