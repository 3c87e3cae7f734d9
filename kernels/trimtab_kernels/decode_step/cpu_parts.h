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
  std::vector<float> floats(const std::string& name) const {
    const auto found = tensor(name);
    if (!found) {
      return {};
    }
    const Tensor wide = found->to(at::kFloat).contiguous();
    const float* const data = wide.const_data_ptr<float>();
    return {data, data + wide.numel()};
  }
};

struct Norm {
  std::vector<float> weight, bias;
  double epsilon;
  bool centers;

  static std::optional<Norm> of(const Description& from, const std::string& name) {
    const auto epsilon = from.number(name + ".epsilon");
    if (!epsilon) {
      return std::nullopt;
    }
    Norm norm{from.floats(name + ".weight"), from.floats(name + ".bias"), *epsilon,
              *from.number(name + ".centers") != 0};
    for (float& weight : norm.weight) {
      weight += static_cast<float>(*from.number(name + ".offset"));
    }
    return norm;
  }
};

// A weight of shape [inputs, outputs] in the model's memory, and who keeps it alive.
struct Linear {
  Tensor weight;
  std::vector<float> bias;
  std::vector<float> scale;  // of every output, with an int8 weight

  int64_t inputs() const { return weight.size(0); }
  int64_t outputs() const { return weight.size(1); }
  // Whether what belongs to one output is contiguous; otherwise, what belongs to one input is.
  bool output_major() const { return weight.stride(1) != 1; }

  static std::optional<Linear> of(const Description& from, const std::string& name) {
    // A matrix alone has no name but its own.
    auto weight = from.tensor(name + ".weight");
    weight = weight ? weight : from.tensor(name);
    if (!weight) {
      return std::nullopt;
    }
    return Linear{*weight, from.floats(name + ".bias"), from.floats(name + ".scale")};
  }
  // Linear layers with the same input, numbered from 0.
  static std::vector<Linear> several(const Description& from, const std::string& name) {
    std::vector<Linear> found;
    while (auto next = of(from, name + "." + std::to_string(found.size()))) {
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

  static Site of(const Description& from, const std::string& name) {
    Site site{Norm::of(from, name + ".norm"), Linear::of(from, name + ".transform"), std::nullopt};
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
  Tensor cos, sin;  // float32 of shape [positions, rotated entries]; undefined without rotations
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

  static Layer of(const Description& from) {
    const auto rotations = [&](const std::string& name) {
      const auto found = from.tensor(name);
      return found ? found->to(at::kFloat).contiguous() : Tensor();
    };
    const auto window = from.number("window");
    return Layer{
        Linear::of(from, "basis_change"),
        Site::of(from, "attention_input"),
        Linear::several(from, "projections"),
        Norm::of(from, "query_norm"),
        Norm::of(from, "key_norm"),
        rotations("rotary.cos"),
        rotations("rotary.sin"),
        *from.number("scale"),
        window ? std::optional(static_cast<int64_t>(*window)) : std::nullopt,
        from.number("softcap"),
        Site::of(from, "attention_output"),
        *Linear::of(from, "output"),
        Norm::of(from, "post_attention"),
        Site::of(from, "mlp_input"),
        Linear::several(from, "mlp"),
        *from.number("gated") != 0,
        static_cast<Activation>(static_cast<int>(*from.number("activation"))),
        Site::of(from, "mlp_activation"),
        *Linear::of(from, "down"),
        Norm::of(from, "post_mlp"),
        *from.tensor("keys"),
        *from.tensor("values"),
    };
  }
};

}  // namespace trimtab
