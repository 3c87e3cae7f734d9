// The operators on a CPU. ops.py documents them; reference.py defines them.

#include <ATen/ops/addmm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <optional>

#include "../cpu_gradients.h"
#include "cpu_gather.h"
#include "cpu_select.h"

namespace trimtab {
namespace {

// Up to this many tokens, the gather reads the union of the weight rows that they keep; for more,
// the library's dense product on the masked input is as fast. Relative to the time of that product,
// at sparsity 0.4 with 576 x 1536, 1536 x 576 and 2048 x 2048, the gather takes: float32 in two
// threads, 0.3 to 0.5 for 4 tokens, 0.5 to 0.6 for 8 and 0.9 to 1.0 for 16; in one thread 0.6, 0.8
// and 1.0; bfloat16 in one thread, 0.6 to 1.0 for 2 and 1.0 to 1.5 for 4, on a processor with
// bfloat16 multiplication.
constexpr int64_t kGatherTokensFloat = 8;
constexpr int64_t kGatherTokensBFloat16 = 2;
// With an int8 weight, the gather also saves widening it for the dense product. Relative to widening
// and product, at 576 x 576 and 2048 x 2048 in one thread, it takes: float32, 0.4 for 2 tokens, 0.3
// to 0.6 for 4, 0.3 to 0.9 for 8 and 0.4 to 1.2 for 16; bfloat16, 0.3 to 0.4, 0.4 to 0.6, 0.8 to
// 0.9 and 1.3.
constexpr int64_t kGatherTokensInt8 = 8;

int64_t gather_tokens(at::ScalarType dtype) {
  return dtype == at::kFloat      ? kGatherTokensFloat
         : dtype == at::kBFloat16 ? kGatherTokensBFloat16
                                  : 0;
}

void check_activations(const Tensor& x) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_VALUE(
      dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble,
      "x is ", name(dtype), "; expected float32, bfloat16, float16 or float64");
  TORCH_CHECK_VALUE(x.dim() >= 1, "x has no dimension; expected [..., d]");
}

void check_matrix(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) == x.size(-1), "weight has shape ",
                    weight.sizes(), "; expected [", x.size(-1), ", n] for x of shape ", x.sizes());
  TORCH_CHECK_VALUE(weight.size(1) <= 1 || weight.stride(1) == 1, "weight has strides ",
                    weight.strides(), "; expected contiguous rows, one for each entry of x");
}

void check_threshold(double threshold) {
  TORCH_CHECK_VALUE(threshold >= 0, "threshold=", threshold, "; expected a number of at least 0");
}

Tensor keep_topk(const Tensor& x, int64_t keep) {
  check_activations(x);
  TORCH_CHECK_VALUE(0 <= keep && keep <= x.size(-1), "keep=", keep, " is outside [0, ", x.size(-1),
                    "]");
  return select_rows(x, keep, 0);
}

Tensor keep_above(const Tensor& x, double threshold, std::optional<int64_t> cap) {
  check_activations(x);
  check_threshold(threshold);
  TORCH_CHECK_VALUE(!cap || *cap >= 0, "cap=", cap.value_or(0), "; expected at least 0 or None");
  return select_rows(x, std::min(cap.value_or(x.size(-1)), x.size(-1)), threshold);
}

Tensor sparse_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     double threshold) {
  check_activations(x);
  check_threshold(threshold);
  check_matrix(x, weight);
  TORCH_CHECK_VALUE(weight.scalar_type() == x.scalar_type() && weight.device() == x.device(),
                    "weight is ", name(weight.scalar_type()), " on ", weight.device(),
                    "; expected ", name(x.scalar_type()), " on ", x.device(), " as x is");
  const int64_t width = x.size(-1), columns = weight.size(1);
  if (bias) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == columns, "bias has shape ",
                      bias->sizes(), "; expected [", columns, "]");
    TORCH_CHECK_VALUE(bias->scalar_type() == x.scalar_type() && bias->device() == x.device(),
                      "bias is ", name(bias->scalar_type()), " on ", bias->device(), "; expected ",
                      name(x.scalar_type()), " on ", x.device(), " as x is");
  }
  auto shape = x.sizes().vec();
  shape.back() = columns;
  const int64_t tokens = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const Tensor rows = x.reshape({tokens, width});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Tensor contiguous = rows.contiguous();
    const Tensor out = at::empty(shape, x.options());
    const Tensor offset = bias ? bias->contiguous() : Tensor();
    const Kept kept =
        compact(contiguous.const_data_ptr<T>(), tokens, width, static_cast<float>(threshold));
    const T* const added = bias ? offset.const_data_ptr<T>() : nullptr;
    const auto finish = [&](float sum, int64_t c) { return added ? sum + widen(added[c]) : sum; };
    gather(kept, width, tokens, weight.const_data_ptr<T>(), weight.stride(0), columns, finish,
           out.mutable_data_ptr<T>());
    return out;
  };
  if (0 < tokens && tokens <= gather_tokens(x.scalar_type())) {
    return x.scalar_type() == at::kFloat ? run(float()) : run(BFloat16());
  }
  const Tensor masked = threshold > 0 ? select_rows(rows, width, threshold) : rows;
  return (bias ? at::addmm(*bias, masked, weight) : at::matmul(masked, weight)).view(shape);
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  check_activations(x);
  check_matrix(x, weight);
  const int64_t width = x.size(-1), columns = weight.size(1);
  TORCH_CHECK_VALUE(weight.scalar_type() == at::kChar && weight.device() == x.device(),
                    "weight is ", name(weight.scalar_type()), " on ", weight.device(),
                    "; expected torch.int8 on ", x.device());
  TORCH_CHECK_VALUE(scale.scalar_type() == at::kFloat && scale.device() == x.device() &&
                        scale.dim() == 1 && scale.size(0) == columns,
                    "scale is ", name(scale.scalar_type()), " of shape ", scale.sizes(), " on ",
                    scale.device(), "; expected torch.float32 of shape [", columns, "] on ",
                    x.device());
  auto shape = x.sizes().vec();
  shape.back() = columns;
  const int64_t tokens = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const Tensor factors = scale.contiguous();
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Tensor rows = x.reshape({tokens, width}).contiguous();
    const Tensor out = at::empty(shape, x.options());
    const float* const factor = factors.const_data_ptr<float>();
    const auto finish = [&](float sum, int64_t c) { return sum * factor[c]; };
    gather(compact(rows.const_data_ptr<T>(), tokens, width, 0.0f), width, tokens,
           weight.const_data_ptr<int8_t>(), weight.stride(0), columns, finish,
           out.mutable_data_ptr<T>());
    return out;
  };
  if (x.scalar_type() == at::kFloat && 0 < tokens && tokens <= kGatherTokensInt8) {
    return run(float());
  }
  if (x.scalar_type() == at::kBFloat16 && 0 < tokens && tokens <= kGatherTokensInt8) {
    return run(BFloat16());
  }
  return at::matmul(x, weight.to(x.scalar_type())).mul(factors).to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimtab, m) {
  m.def("sparse_linear_instruction_set() -> str", instruction_set);
  m.def("sparse_linear_gather_tokens(ScalarType dtype) -> int", gather_tokens);
}

TORCH_LIBRARY_IMPL(trimtab, CPU, m) {
  m.impl("keep_topk", keep_topk);
  m.impl("keep_above", keep_above);
  m.impl("sparse_linear", sparse_linear);
  m.impl("int8_linear", int8_linear);
}

TORCH_LIBRARY_IMPL(trimtab, AutogradCPU, m) {
  for (const char* const op : {"keep_topk", "keep_above", "sparse_linear", "int8_linear"}) {
    m.impl(op, refusing_gradients());
  }
}

}  // namespace trimtab
