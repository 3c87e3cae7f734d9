// The parts of a decode plan, as plan.py has them.

#pragma once

#include <ATen/core/Dict.h>

#include <optional>
#include <string>
#include <vector>

#include "../cpu_common.h"

namespace trimtab {

// What Python says of a part: its tensors and its numbers, by name. What is not there is None.
struct Description {
  const c10::Dict<std::string, Tensor>& tensors;
  const c10::Dict<std::string, double>& numbers;

  std::optional<Tensor> tensor(const std::string& name) const {
    const auto found = tensors.find(name);
    return found == tensors.end() ? std::nullopt : std::optional(found->value());
  }
  std::optional<double> number(const std::string& name) const {
    const auto found = numbers.find(name);
    return found == numbers.end() ? std::nullopt : std::optional(found->value());
  }
};

// What belongs to every entry of a vector: a tensor of the model's dtype, read where it is.
inline Tensor vector_of(const Description& from, const std::string& name, at::ScalarType dtype) {
  const Tensor found = from.tensor(name).value_or(Tensor());
  TORCH_CHECK_VALUE(!found.defined() || (found.scalar_type() == dtype && found.dim() == 1 &&
                                         (found.numel() <= 1 || found.stride(0) == 1)),
                    name, " is ", trimtab::name(found.scalar_type()), " of shape ", found.sizes(),
                    " and strides ", found.strides(), "; expected a contiguous vector of ",
                    trimtab::name(dtype));
  return found;
}

// Refuses a vector that is there and has not as many entries.
inline void require_entries(const Tensor& vector, int64_t entries, const std::string& name) {
  TORCH_CHECK_VALUE(!vector.defined() || vector.numel() == entries, name, " has ", vector.numel(),
                    " entries; expected ", entries);
}

// A table with one row of `width` entries for each of at least `rows` places, read where it is.
inline Tensor table_of(const Description& from, const std::string& name, at::ScalarType dtype,
                       int64_t rows) {
  const Tensor found = from.tensor(name).value_or(Tensor());
  TORCH_CHECK_VALUE(!found.defined() ||
                        (found.scalar_type() == dtype && found.dim() == 2 && found.size(0) >= rows &&
                         (found.size(1) <= 1 || found.stride(1) == 1)),
                    name, " is ", trimtab::name(found.scalar_type()), " of shape ", found.sizes(),
                    " and strides ", found.strides(), "; expected at least ", rows,
                    " contiguous rows of ", trimtab::name(dtype));
  return found;
}

struct Norm {
  Tensor weight, bias;  // no bias where it is undefined
  float epsilon, offset;
  bool centers;

  static std::optional<Norm> of(const Description& from, const std::string& name,
                                at::ScalarType dtype) {
    const auto epsilon = from.number(name + ".epsilon");
    if (!epsilon) {
      return std::nullopt;
    }
    Norm norm{vector_of(from, name + ".weight", dtype), vector_of(from, name + ".bias", dtype),
              static_cast<float>(*epsilon), static_cast<float>(*from.number(name + ".offset")),
              *from.number(name + ".centers") != 0};
    require_entries(norm.bias, norm.weight.numel(), name + ".bias");
    return norm;
  }
};

// A weight of shape [inputs, outputs], read where it is.
struct Linear {
  Tensor weight;
  Tensor bias;   // undefined where there is none
  Tensor scale;  // float32, of every output of an int8 weight; undefined otherwise

  int64_t inputs() const { return weight.size(0); }
  int64_t outputs() const { return weight.size(1); }
  // Whether what belongs to one output is contiguous; otherwise, what belongs to one input is.
  bool output_major() const { return weight.stride(1) != 1; }

  static std::optional<Linear> of(const Description& from, const std::string& name,
                                  at::ScalarType dtype) {
    // A matrix alone has no name but its own.
    auto weight = from.tensor(name + ".weight");
    weight = weight ? weight : from.tensor(name);
    if (!weight) {
      return std::nullopt;
    }
    Linear linear{*weight, vector_of(from, name + ".bias", dtype),
                  vector_of(from, name + ".scale", at::kFloat)};
    const auto expected = linear.scale.defined() ? at::kChar : dtype;
    TORCH_CHECK_VALUE(weight->scalar_type() == expected && weight->dim() == 2 &&
                          (weight->stride(0) == 1 || weight->stride(1) == 1),
                      name, " is ", trimtab::name(weight->scalar_type()), " of shape ",
                      weight->sizes(), " and strides ", weight->strides(), "; expected ",
                      trimtab::name(expected), " with one stride of 1");
    require_entries(linear.bias, linear.outputs(), name + ".bias");
    require_entries(linear.scale, linear.outputs(), name + ".scale");
    return linear;
  }
  // Linear layers with the same input, numbered from 0.
  static std::vector<Linear> several(const Description& from, const std::string& name,
                                     at::ScalarType dtype) {
    std::vector<Linear> found;
    while (auto next = of(from, name + "." + std::to_string(found.size()), dtype)) {
      found.push_back(*next);
    }
    return found;
  }
};

struct Selection {
  int64_t keep;
  double threshold;
  int64_t dense_prefix;
  Tensor counts;  // undefined where nobody wants them
};

struct Site {
  std::optional<Norm> norm;
  std::optional<Linear> transform;
  std::optional<Selection> selection;

  // `width`: of what the site is given. A transform is made in memory as wide as the residual stream.
  void require_fit(const std::string& name, int64_t width, bool of_stream) const {
    if (norm) {
      require_entries(norm->weight, width, name + ".norm.weight");
    }
    TORCH_CHECK_VALUE(!transform || (of_stream && transform->inputs() == width &&
                                     transform->outputs() == width),
                      name, " has a transform of shape ",
                      transform ? transform->weight.sizes() : at::IntArrayRef(),
                      "; expected one of what the residual stream is, as wide, or none");
  }

  static Site of(const Description& from, const std::string& name, at::ScalarType dtype) {
    Site site{Norm::of(from, name + ".norm", dtype), Linear::of(from, name + ".transform", dtype),
              std::nullopt};
    const std::string selection = name + ".selection";
    if (const auto keep = from.number(selection + ".keep")) {
      site.selection = Selection{static_cast<int64_t>(*keep), *from.number(selection + ".threshold"),
                                 static_cast<int64_t>(*from.number(selection + ".dense_prefix")),
                                 from.tensor(selection + ".counts").value_or(Tensor())};
    }
    return site;
  }
};

enum class Activation { silu, relu, gelu, gelu_tanh };

struct Layer {
  std::optional<Linear> basis_change;
  Site attention_input;
  std::vector<Linear> projections;
  std::optional<Norm> query_norm, key_norm;
  Tensor cos, sin;  // of shape [positions, rotated entries]; undefined without rotations
  double scale;
  std::optional<int64_t> window;
  std::optional<double> softcap;
  Site attention_output;
  Linear output;
  std::optional<Norm> post_attention;
  Site mlp_input;
  std::vector<Linear> mlp;
  bool gated;
  Activation activation;
  Site mlp_activation;
  Linear down;
  std::optional<Norm> post_mlp;
  Tensor keys, values;

  // Refuses sites and norms that are not as wide as what they are given.
  void require_fit(int64_t width) const {
    attention_input.require_fit("attention_input", width, true);
    attention_output.require_fit("attention_output", output.inputs(), false);
    mlp_input.require_fit("mlp_input", width, true);
    mlp_activation.require_fit("mlp_activation", down.inputs(), false);
    for (const auto& norm : {post_attention, post_mlp}) {
      require_entries(norm ? norm->weight : Tensor(), width, "a post-norm's weight");
    }
    for (const auto& norm : {query_norm, key_norm}) {
      require_entries(norm ? norm->weight : Tensor(), keys.size(3), "a head norm's weight");
    }
  }

  static Layer of(const Description& from, at::ScalarType dtype) {
    const Tensor keys = *from.tensor("keys"), values = *from.tensor("values");
    for (const Tensor& cache : {keys, values}) {
      TORCH_CHECK_VALUE(cache.scalar_type() == dtype && cache.dim() == 4 &&
                            cache.sizes() == keys.sizes() && cache.stride(3) == 1,
                        "the cache is ", name(cache.scalar_type()), " of shape ", cache.sizes(),
                        "; expected ", name(dtype), " [slots, max_len, kv_heads, head_dim]");
    }
    const auto window = from.number("window");
    return Layer{
        Linear::of(from, "basis_change", dtype),
        Site::of(from, "attention_input", dtype),
        Linear::several(from, "projections", dtype),
        Norm::of(from, "query_norm", dtype),
        Norm::of(from, "key_norm", dtype),
        table_of(from, "rotary.cos", dtype, keys.size(1)),
        table_of(from, "rotary.sin", dtype, keys.size(1)),
        *from.number("scale"),
        window ? std::optional(static_cast<int64_t>(*window)) : std::nullopt,
        from.number("softcap"),
        Site::of(from, "attention_output", dtype),
        *Linear::of(from, "output", dtype),
        Norm::of(from, "post_attention", dtype),
        Site::of(from, "mlp_input", dtype),
        Linear::several(from, "mlp", dtype),
        *from.number("gated") != 0,
        static_cast<Activation>(static_cast<int>(*from.number("activation"))),
        Site::of(from, "mlp_activation", dtype),
        *Linear::of(from, "down", dtype),
        Norm::of(from, "post_mlp", dtype),
        keys,
        values,
    };
  }
};

}  // namespace trimtab
