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

// A query's place in the cache: it attends to the first `length` tokens of the slot.
struct Place {
  int64_t slot, length;
};

// Which parts there are of the tokens that some queries attend to.
struct Parts {
  // By query, the first token attended to, and the index of the first part. The last of the indices
  // is the number of parts.
  std::vector<int64_t> starts, first = {0};

  Parts(const std::vector<Place>& places, std::optional<int64_t> window) {
    for (const Place& place : places) {
      const int64_t span = std::min(place.length, window.value_or(place.length));
      starts.push_back(place.length - span);
      first.push_back(first.back() + (span + kPart - 1) / kPart);
    }
  }
  int64_t count() const { return first.back(); }
};

// Attends with queries of shape [rows, heads, width], which are Q and whose rows are `apart`, to a
// cache of T.
template <typename T, typename Q = T>
class Attention {
 public:
  Attention(const Q* query, int64_t apart, int64_t heads, const Tensor& keys,
            const Tensor& values, const std::vector<Place>& places, const Parts& parts,
            const Options& options)
      : query_(query), apart_(apart), keys_(keys), values_(values), places_(places), parts_(parts),
        options_(options), group_(heads / keys.size(2)) {}

  // How many pieces of work there are, and what they need: each of them float32 numbers.
  int64_t items() const { return parts_.count() * kv_heads_; }
  int64_t scratch_size() const { return group_ * (kv_heads_ * padded_ + kBlock); }
  int64_t sums_size() const { return items() * group_ * padded_; }
  int64_t softmaxes_size() const { return items() * group_; }

  // Where results of the pieces are kept until they are combined.
  void use(float* sums, Softmax* softmaxes) {
    sums_ = sums;
    softmaxes_ = softmaxes;
  }

  void run(Q* out) {
    const int64_t rows = static_cast<int64_t>(places_.size());
    // Kept between calls: new pages would cost more than the writes to them.
    thread_local std::vector<float> sums;
    thread_local std::vector<Softmax> softmaxes;
    sums.resize(std::max<size_t>(sums.size(), sums_size()));
    softmaxes.resize(std::max<size_t>(softmaxes.size(), softmaxes_size()));
    use(sums.data(), softmaxes.data());
    const std::unique_ptr<std::atomic<int64_t>[]> missing(
        new std::atomic<int64_t>[rows * kv_heads_]);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t count = parts_.first[row + 1] - parts_.first[row];
      std::fill_n(missing.get() + row * kv_heads_, kv_heads_, count);
      if (count == 0) {
        std::fill_n(out + row * kv_heads_ * group_ * width_, kv_heads_ * group_ * width_, Q(0));
      }
    }

    const int64_t part_bytes = 2 * kPart * width_ * static_cast<int64_t>(sizeof(T));
    const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / (part_bytes + 1));
    parallel_for(items(), grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[scratch_size()]());
      each(begin, end, scratch.get(), [&](int64_t row, int64_t first, int64_t last) {
        // The thread that finishes a row's last part combines them, so none waits for others.
        for (int64_t head = first; head < last; ++head) {
          const int64_t pair = row * kv_heads_ + head;
          if (missing[pair].fetch_sub(1, std::memory_order_acq_rel) == 1) {
            combine(row, head, out + pair * group_ * width_);
          }
        }
      });
    });
  }

  // Pieces [begin, end). `done` is called with a row and the first and last of its KV heads whenever
  // a part of it is finished for them. `scratch` must be zero at first.
  template <typename F>
  void each(int64_t begin, int64_t end, float* scratch, const F& done) {
    while (begin < end) {
      const int64_t part = begin / kv_heads_, first = begin % kv_heads_;
      const int64_t last = std::min(kv_heads_, first + end - begin);
      const auto after = std::upper_bound(parts_.first.begin(), parts_.first.end(), part);
      const int64_t row = after - parts_.first.begin() - 1;
      attend(row, part, first, last, scratch);
      done(row, first, last);
      begin += last - first;
    }
  }

  // Combines the parts of one KV head's query heads, first to last.
  void combine(int64_t row, int64_t kv_head, Q* out) {
    const int64_t first = parts_.first[row], last = parts_.first[row + 1];
    for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head) {
      Softmax whole;
      for (int64_t part = first; part < last; ++part) {
        whole.largest = std::max(whole.largest, softmaxes_[index(part, head)].largest);
      }
      float* const mixed = sums_ + index(first, head) * padded_;
      for (int64_t part = first; part < last; ++part) {
        const float factor = std::exp(softmaxes_[index(part, head)].largest - whole.largest);
        const float* const sums = sums_ + index(part, head) * padded_;
        whole.total += factor * softmaxes_[index(part, head)].total;
        for (int64_t c = 0; c < width_; ++c) {
          mixed[c] = factor * sums[c] + (part == first ? 0.0f : mixed[c]);
        }
      }
      for (int64_t c = 0; c < width_; ++c) {
        *out++ = static_cast<Q>(mixed[c] / whole.total);
      }
    }
  }

 private:
  // Index of the intermediate results of a part and a query head.
  int64_t index(int64_t part, int64_t head) const { return part * kv_heads_ * group_ + head; }

  // One part of a row for some KV heads, block by block, so that memory is read nearly in order.
  void attend(int64_t row, int64_t part, int64_t first, int64_t last, float* scratch) {
    float* const query = scratch + group_ * kBlock;
    const auto [slot, length] = places_[row];
    const Q* const source = query_ + row * apart_;
    for (int64_t head = first * group_; head < last * group_; ++head) {
      for (int64_t c = 0; c < width_; ++c) {
        query[head * padded_ + c] =
            widen(source[head * width_ + c]) * static_cast<float>(options_.scale);
      }
      std::fill_n(sums_ + index(part, head) * padded_, padded_, 0.0f);
      softmaxes_[index(part, head)] = Softmax();
    }
    int64_t token = parts_.starts[row] + (part - parts_.first[row]) * kPart;
    const int64_t end = std::min(length, token + kPart);
    for (; token < end; token += kBlock) {
      for (int64_t kv_head = first; kv_head < last; ++kv_head) {
        const auto rows = [&, slot = slot, length = length](const Tensor& cache) {
          return Rows<T>{cache.template const_data_ptr<T>() + slot * cache.stride(0) +
                             token * cache.stride(1) + kv_head * cache.stride(2),
                         cache.stride(1), width_, std::min(kBlock, end - token), length - token};
        };
        attend_block(index(part, kv_head * group_), query + kv_head * group_ * padded_,
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

  const Q* const query_;
  const int64_t apart_;
  const Tensor &keys_, &values_;
  const std::vector<Place>& places_;
  const Parts& parts_;
  const Options options_;
  const int64_t group_;
  const int64_t width_ = keys_.size(3), kv_heads_ = keys_.size(2);
  const int64_t padded_ = (width_ + kLanes - 1) / kLanes * kLanes;
  // By part and query head.
  float* sums_ = nullptr;
  Softmax* softmaxes_ = nullptr;
};

}  // namespace trimtab
