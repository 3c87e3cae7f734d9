// The operators on a CPU. ops.py documents them; reference.py defines them.

#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "../cpu_gradients.h"
#include "cpu_attend.h"

namespace trimtab {
namespace {

void check_dtype(const Tensor& query) {
  const auto dtype = query.scalar_type();
  TORCH_CHECK_VALUE(
      dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble,
      "query is ", name(dtype), "; expected float32, bfloat16, float16 or float64");
}

void check_kind(const char* label, const Tensor& tensor, const char* other, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(),
                    label, " is ", name(tensor.scalar_type()), " on ", tensor.device(),
                    "; expected ", name(like.scalar_type()), " on ", like.device(), " as ", other,
                    " is");
}

void check_cache(const Tensor& keys, const Tensor& values, const Tensor& lengths) {
  TORCH_CHECK_VALUE(keys.dim() == 4, "keys has shape ", keys.sizes(),
                    "; expected [slots, max_len, kv_heads, head_dim]");
  TORCH_CHECK_VALUE(values.sizes() == keys.sizes(), "values has shape ", values.sizes(),
                    "; expected ", keys.sizes(), " as keys has");
  check_kind("values", values, "keys", keys);
  for (const auto& [label, cache] : {std::pair("keys", keys), std::pair("values", values)}) {
    TORCH_CHECK_VALUE(cache.size(3) <= 1 || cache.stride(3) == 1, label, " has strides ",
                      cache.strides(), "; expected a last stride of 1");
  }
  TORCH_CHECK_VALUE(lengths.scalar_type() == at::kInt && lengths.device() == keys.device() &&
                        lengths.dim() == 1 && lengths.size(0) == keys.size(0),
                    "lengths is ", name(lengths.scalar_type()), " of shape ", lengths.sizes(),
                    " on ", lengths.device(), "; expected torch.int32 of shape [", keys.size(0),
                    "] on ", keys.device());
}

// The lengths as a contiguous vector, each checked to be within the cache.
std::vector<int64_t> read_lengths(const Tensor& keys, const Tensor& lengths) {
  std::vector<int64_t> result(keys.size(0));
  for (int64_t slot = 0; slot < keys.size(0); ++slot) {
    const int64_t length = lengths.const_data_ptr<int32_t>()[slot * lengths.stride(0)];
    TORCH_CHECK_VALUE(0 <= length && length <= keys.size(1), "lengths[", slot, "]=", length,
                      " is outside [0, ", keys.size(1), "]");
    result[slot] = length;
  }
  return result;
}

// float16 and float64, like the reference: one slot at a time, by the library.
void attend_by_library(const Tensor& query, const Tensor& keys, const Tensor& values,
                       const std::vector<int64_t>& lengths, const Options& options,
                       const Tensor& out) {
  const auto wide = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t heads = query.size(1), width = query.size(2), kv_heads = keys.size(2);
  for (int64_t slot = 0; slot < query.size(0); ++slot) {
    const int64_t span = std::min(lengths[slot], options.window.value_or(lengths[slot]));
    const auto attended = [&](const Tensor& cache) {
      return cache.select(0, slot).narrow(0, lengths[slot] - span, span).to(wide).transpose(0, 1);
    };
    const Tensor grouped = query.select(0, slot).to(wide).view({kv_heads, heads / kv_heads, width});
    Tensor scores = at::matmul(grouped, attended(keys).transpose(1, 2)).mul(options.scale);
    if (options.softcap) {
      scores = scores.div(*options.softcap).tanh().mul(*options.softcap);
    }
    const Tensor mixed = at::matmul(at::softmax(scores, -1), attended(values));
    out.select(0, slot).copy_(mixed.view({heads, width}));
  }
}

void decode_attention_out(const Tensor& query, const Tensor& keys, const Tensor& values,
                          const Tensor& lengths, double scale, std::optional<int64_t> window,
                          std::optional<double> softcap, Tensor& out) {
  check_dtype(query);
  check_cache(keys, values, lengths);
  check_kind("keys", keys, "query", query);
  TORCH_CHECK_VALUE(query.dim() == 3 && query.size(0) == keys.size(0) &&
                        query.size(2) == keys.size(3) && keys.size(2) > 0 &&
                        query.size(1) % keys.size(2) == 0,
                    "query has shape ", query.sizes(), "; expected [", keys.size(0),
                    ", a multiple of ", keys.size(2), ", ", keys.size(3), "] for keys of shape ",
                    keys.sizes());
  TORCH_CHECK_VALUE(!window || *window >= 1, "window=", window.value_or(0),
                    "; expected at least 1 or None");
  TORCH_CHECK_VALUE(!softcap || *softcap > 0, "softcap=", softcap.value_or(0),
                    "; expected a number above 0 or None");
  TORCH_CHECK_VALUE(out.sizes() == query.sizes() && out.is_contiguous(), "out has shape ",
                    out.sizes(), " and strides ", out.strides(), "; expected contiguous ",
                    query.sizes(), " as query has");
  check_kind("out", out, "query", query);
  const Options options{scale, window, softcap};
  const Tensor rows = query.contiguous();
  const std::vector<int64_t> counts = read_lengths(keys, lengths);
  std::vector<Place> places;
  for (size_t slot = 0; slot < counts.size(); ++slot) {
    places.push_back({static_cast<int64_t>(slot), counts[slot]});
  }
  const Parts parts(places, window);
  const auto attend = [&](auto zero) {
    using T = decltype(zero);
    Attention<T>(rows.const_data_ptr<T>(), rows.size(1) * rows.size(2), rows.size(1), keys, values,
                 places, parts, options)
        .run(out.mutable_data_ptr<T>());
  };
  if (query.scalar_type() == at::kFloat) {
    attend(float());
  } else if (query.scalar_type() == at::kBFloat16) {
    attend(BFloat16());
  } else {
    attend_by_library(rows, keys, values, counts, options, out);
  }
}

Tensor decode_attention(const Tensor& query, const Tensor& keys, const Tensor& values,
                        const Tensor& lengths, double scale, std::optional<int64_t> window,
                        std::optional<double> softcap) {
  Tensor out = at::empty(query.sizes(), query.options());
  decode_attention_out(query, keys, values, lengths, scale, window, softcap, out);
  return out;
}

void append_kv(Tensor& keys, Tensor& values, const Tensor& key, const Tensor& value,
               const Tensor& lengths) {
  check_cache(keys, values, lengths);
  const std::vector<int64_t> shape{keys.size(0), keys.size(2), keys.size(3)};
  const at::IntArrayRef expected(shape);
  for (const auto& [label, token] : {std::pair("key", key), std::pair("value", value)}) {
    TORCH_CHECK_VALUE(token.sizes() == expected, label, " has shape ", token.sizes(),
                      "; expected ", expected, " for keys of shape ", keys.sizes());
    check_kind(label, token, "keys", keys);
  }
  const std::vector<int64_t> counts = read_lengths(keys, lengths);
  const auto write = [&](const Tensor& cache, const Tensor& token) {
    const Tensor rows = token.contiguous();
    const auto size = static_cast<int64_t>(cache.element_size());
    const int64_t bytes = cache.size(3) * size;
    const char* source = static_cast<const char*>(rows.const_data_ptr());
    char* const target = static_cast<char*>(cache.mutable_data_ptr());
    for (int64_t slot = 0; slot < cache.size(0); ++slot) {
      for (int64_t head = 0; head < cache.size(2); ++head, source += bytes) {
        if (counts[slot]) {
          std::memcpy(target + size * (slot * cache.stride(0) +
                                       (counts[slot] - 1) * cache.stride(1) +
                                       head * cache.stride(2)),
                      source, bytes);
        }
      }
    }
  };
  write(keys, key);
  write(values, value);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimtab, m) {
  m.def("decode_attention_instruction_set() -> str", instruction_set);
}

TORCH_LIBRARY_IMPL(trimtab, CPU, m) {
  m.impl("decode_attention", decode_attention);
  m.impl("decode_attention.out", decode_attention_out);
  m.impl("append_kv", append_kv);
}

TORCH_LIBRARY_IMPL(trimtab, AutogradCPU, m) {
  for (const char* const op : {"decode_attention", "decode_attention.out", "append_kv"}) {
    m.impl(op, refusing_gradients());
  }
}

}  // namespace trimtab
