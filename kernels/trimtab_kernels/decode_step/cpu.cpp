// The executor of decode plans on a CPU. plan.py says what a plan is; reference.py defines a step.

#include <ATen/ops/empty.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <numeric>

#include "cpu_step.h"

namespace trimtab {
namespace {

using Tensors = c10::Dict<std::string, Tensor>;
using Numbers = c10::Dict<std::string, double>;

std::vector<int64_t> numbers(const Tensor& tensor, const char* label, int64_t count) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kLong && tensor.dim() == 1 &&
                        tensor.device().is_cpu() && (count < 0 || tensor.size(0) == count),
                    label, " is ", name(tensor.scalar_type()), " of shape ", tensor.sizes(),
                    "; expected torch.int64 of one dimension, as long as tokens");
  const Tensor contiguous = tensor.contiguous();
  const int64_t* const data = contiguous.const_data_ptr<int64_t>();
  return {data, data + contiguous.numel()};
}

struct CpuDecodePlan : torch::CustomClassHolder {
  CpuDecodePlan(const Tensors& tensors, const Numbers& given) {
    const Description from{tensors, given};
    plan_.heads = static_cast<int64_t>(*from.number("heads"));
    plan_.kv_heads = static_cast<int64_t>(*from.number("kv_heads"));
    plan_.head_dim = static_cast<int64_t>(*from.number("head_dim"));
    plan_.position_offset = static_cast<int64_t>(*from.number("embedding.position_offset"));
    const auto dtype = from.tensor("embedding.weight")->scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "the embedding is ",
                      name(dtype), "; expected torch.float32 or torch.bfloat16");
    plan_.embedding = table_of(from, "embedding.weight", dtype, 1);
    plan_.embedding_scale = from.number("embedding.scale").value_or(1);
    plan_.positions = table_of(from, "embedding.positions", dtype, plan_.position_offset + 1);
    plan_.basis_change = Linear::of(from, "basis_change", dtype);
    plan_.final_norm = *Norm::of(from, "final_norm", dtype);
    plan_.head = *Linear::of(from, "head", dtype);
    plan_.softcap = from.number("softcap");
    require_entries(plan_.final_norm.weight, plan_.embedding.size(1), "final_norm.weight");
  }

  void add_layer(const Tensors& tensors, const Numbers& given) {
    Layer layer = Layer::of({tensors, given}, plan_.embedding.scalar_type());
    layer.require_fit(plan_.embedding.size(1));
    const int64_t needed = layer.keys.size(1) + plan_.position_offset;
    TORCH_CHECK_VALUE(!plan_.positions.defined() || plan_.positions.size(0) >= needed,
                      "the embeddings of positions are ", plan_.positions.size(0), "; expected ",
                      needed, " for a cache of ", layer.keys.size(1), " tokens");
    plan_.layers.push_back(std::move(layer));
  }

  Tensor step(const Tensor& tokens, const Tensor& slots, const Tensor& positions) {
    const Tokens rows = rows_of(tokens, slots, positions);
    const Tensor logits =
        at::empty({rows.count(), plan_.head.outputs()}, plan_.embedding.options());
    with_dtype([&](auto zero) {
      using T = decltype(zero);
      run<T>(rows, logits.mutable_data_ptr<T>(), nullptr);
    });
    return logits;
  }

  // Of all steps so far, the mean over the threads by what they did.
  Numbers seconds() const {
    Numbers found;
    for (size_t work = 0; work < kWorkNames.size(); ++work) {
      double total = 0;
      for (const Memory::Own& own : memory_.own) {
        total += own.times.seconds(work);
      }
      found.insert(kWorkNames[work], total);
    }
    return found;
  }

  bool has_quantized_head() const { return QuantizedHead::fits(plan_.head); }

  void refresh_head() {
    with_dtype([&](auto zero) { head_.refresh<decltype(zero)>(plan_.head); });
  }

  // How many logits a chosen token took from the head itself, in the mean of all so far.
  double exact_logits() const {
    const auto sum = std::accumulate(choice_.exact.begin(), choice_.exact.end(), int64_t{0});
    return static_cast<double>(sum) / choice_.rows_seen;
  }

  Tensor choose(const Tensor& tokens, const Tensor& slots, const Tensor& positions) {
    const Tokens rows = rows_of(tokens, slots, positions);
    TORCH_CHECK_VALUE(head_.made(), "the head is not quantized; expected refresh_head() before");
    with_dtype([&](auto zero) { run<decltype(zero)>(rows, nullptr, &choice_); });
    const Tensor chosen = at::empty({rows.count()}, tokens.options());
    for (int64_t r = 0; r < rows.count(); ++r) {
      chosen.mutable_data_ptr<int64_t>()[r] = choice_.largest(r, rows.count()).token;
    }
    return chosen;
  }

 private:
  Tokens rows_of(const Tensor& tokens, const Tensor& slots, const Tensor& positions) const {
    Tokens rows{numbers(tokens, "tokens", -1), {}};
    const auto in_slots = numbers(slots, "slots", rows.count());
    const auto at = numbers(positions, "positions", rows.count());
    TORCH_CHECK_VALUE(0 < rows.count() && rows.count() <= kMostRows, rows.count(),
                      " tokens; expected 1 to ", kMostRows);
    const Tensor& keys = plan_.layers.at(0).keys;
    for (int64_t r = 0; r < rows.count(); ++r) {
      TORCH_CHECK_VALUE(0 <= rows.ids[r] && rows.ids[r] < plan_.embedding.size(0),
                        "token ", rows.ids[r], "; expected 0 to ", plan_.embedding.size(0) - 1);
      TORCH_CHECK_VALUE(0 <= in_slots[r] && in_slots[r] < keys.size(0) && 0 <= at[r] &&
                            at[r] < keys.size(1),
                        "position ", at[r], " of slot ", in_slots[r], " is outside a cache of shape ",
                        keys.sizes());
      rows.places.push_back({in_slots[r], at[r] + 1});
    }
    return rows;
  }

  template <typename T>
  void run(const Tokens& rows, T* logits, Choice* choice) {
    const auto started = Times::Clock::now();
    Step<T> step(plan_, rows, memory_, logits, choice);
    std::vector<Times*> running(thread_count());
    run_team([&](const Member& member) {
      Times& times = memory_.own[member.first].times;
      times.start(started, static_cast<double>(member.last - member.first) / member.team);
      running[member.first] = &times;
      step.run(member);
    });
    for (Times* const times : running) {
      if (times) {
        times->end(Work::waiting);
      }
    }
  }

  // Calls `body` with a number of the plan's dtype.
  template <typename F>
  void with_dtype(const F& body) const {
    if (plan_.embedding.scalar_type() == at::kFloat) {
      body(float());
    } else {
      body(BFloat16());
    }
  }

  static constexpr int64_t kMostRows = 64;

  Plan plan_;
  Memory memory_;
  QuantizedHead head_;
  Choice choice_{head_};
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimtab, m) {
  m.def("decode_step_instruction_set() -> str", instruction_set);
  m.class_<CpuDecodePlan>("CpuDecodePlan")
      .def(torch::init<const Tensors&, const Numbers&>())
      .def("add_layer", &CpuDecodePlan::add_layer)
      .def("step", &CpuDecodePlan::step)
      .def("seconds", &CpuDecodePlan::seconds)
      .def("has_quantized_head", &CpuDecodePlan::has_quantized_head)
      .def("refresh_head", &CpuDecodePlan::refresh_head)
      .def("exact_logits", &CpuDecodePlan::exact_logits)
      .def("choose", &CpuDecodePlan::choose);
}

}  // namespace trimtab
