// Gradients on a CPU: no operator has any, and each says so, as in gradients.py.

#pragma once

#include <c10/core/GradMode.h>
#include <torch/library.h>

namespace trimtab {

// The kernel of an operator for AutogradCPU.
inline void refuse_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                             torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  for (size_t k = stack->size() - count; k < stack->size(); ++k) {
    const c10::IValue& argument = (*stack)[k];
    if (argument.isTensor()) {
      const at::Tensor& tensor = argument.toTensor();
      const bool recorded = c10::GradMode::is_enabled() && tensor.requires_grad();
      TORCH_CHECK_NOT_IMPLEMENTED(
          !recorded && !tensor._fw_grad(0).defined(), op.schema().name(),
          " has no derivative: run the model under torch.no_grad() or torch.inference_mode(), or "
          "take gradients of the unmodified model");
    }
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

inline torch::CppFunction refusing_gradients() {
  return torch::CppFunction::makeFromBoxedFunction<&refuse_gradients>();
}

}  // namespace trimtab
