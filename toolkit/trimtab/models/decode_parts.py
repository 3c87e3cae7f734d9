"""What the modules of a model are in a decode plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.utils.parametrize import is_parametrized
from transformers.activations import (
    GELUActivation,
    GELUTanh,
    NewGELUActivation,
    SiLUActivation,
)
from transformers.pytorch_utils import Conv1D

from trimtab.errors import MisfitError
from trimtab.models.adapter import input_major
from trimtab.models.code import code_beside
from trimtab.models.norms import GEMMA_NORMS, centers, norm_epsilon
from trimtab.models.sites import Site
from trimtab_kernels.decode_step import Activation, Linear, Norm, SiteInput

BASIS_CHANGE = "basis_change"
"""Name of the buffer with the matrix that a module's input is multiplied by first."""

ACTIVATIONS = {
    SiLUActivation: Activation.silu,
    nn.SiLU: Activation.silu,
    nn.ReLU: Activation.relu,
    GELUActivation: Activation.gelu,
    GELUTanh: Activation.gelu_tanh,
    NewGELUActivation: Activation.gelu_tanh,
}
KNOWN_CODE = "torch.nn.", "transformers.", "trimtab."
KNOWN_WRAPPERS = (*KNOWN_CODE, "torch.utils.")

F = TypeVar("F", bound=Callable[..., Any])


@runtime_checkable
class HasSiteInput(Protocol):
    """A module in place of a norm, or a linear layer, that does more with its input."""

    def site_input(self) -> SiteInput:
        """Return what happens to the activations before linear layers read them."""


@runtime_checkable
class HasLinearPart(Protocol):
    """A linear layer with an order of its own in memory."""

    def linear_part(self) -> Linear:
        """Return the layer's weight as a view of shape [inputs, outputs], and its bias."""


def in_plan(hook: F) -> F:
    """Mark a hook whose effect a decode plan contains."""
    hook.in_decode_plan = True  # type: ignore[attr-defined]
    return hook


def norm_part(norm: nn.Module) -> Norm:
    """Return a norm of a supported architecture, whichever class it has.

    Raises
    ------
    MisfitError
        If it is something else, or has no weight or epsilon of its own.
    """
    known = isinstance(norm, (nn.LayerNorm, nn.RMSNorm, *GEMMA_NORMS))
    if not known and not hasattr(norm, "variance_epsilon"):
        raise MisfitError(f"a norm of the class {type(norm).__name__} is in no decode plan")
    weight = cast("Tensor | None", norm.weight)
    if weight is None or (known and norm.eps is None):
        raise MisfitError(f"a {type(norm).__name__} without weight or epsilon is in no decode plan")
    bias = cast("Tensor | None", norm.bias) if isinstance(norm, nn.LayerNorm) else None
    offset = 1.0 if isinstance(norm, GEMMA_NORMS) else 0.0
    return Norm(weight, bias, norm_epsilon(norm), centers(norm), offset)


def site_input(site: Site, layer: nn.Module) -> SiteInput:
    """Return what happens at a site of a decoder layer before its linear layers."""
    module = layer.get_submodule(site.norm or site.readers[0])
    if isinstance(module, HasSiteInput):
        return module.site_input()
    return SiteInput(norm_part(module) if site.norm else None)


def linear_part(linear: nn.Module) -> Linear:
    """Return a linear layer.

    Raises
    ------
    MisfitError
        If it is of a class that does more, or something else.
    """
    if isinstance(linear, HasLinearPart):
        return linear.linear_part()
    if type(linear) not in (nn.Linear, Conv1D):
        raise MisfitError(f"a linear layer of the class {type(linear).__name__} is in no plan")
    return Linear(input_major(linear), cast("Tensor | None", linear.bias))


def joined(linears: Sequence[Linear]) -> tuple[Linear, ...]:
    """Return linear layers with one input, those as one that lie side by side in memory.

    That is if an input's weights of one come right after its weights of another, and the biases of
    one after those of the other.
    """
    found: list[Linear] = []
    for linear in linears:
        beside = found and _beside(found[-1], linear)
        found[-1:] = [beside] if beside else [*found[-1:], linear]
    return tuple(found)


def _beside(first: Linear, second: Linear) -> Linear | None:
    """Return two linear layers as one, if they lie side by side."""
    weights, biases = (first.weight, second.weight), (first.bias, second.bias)
    outputs = [weight.shape[1] for weight in weights]
    apart = {weight.stride(0) for weight in weights}
    row_major = all(weight.stride(1) == 1 for weight in weights)
    if not (row_major and len(apart) == 1 and sum(outputs) <= min(apart) and _follows(*weights)):
        return None
    weight = first.weight.data
    weight = weight.as_strided((len(weight), sum(outputs)), weight.stride())
    if biases[0] is None and biases[1] is None:
        return Linear(weight)
    if biases[0] is None or biases[1] is None or not _follows(biases[0], biases[1]):
        return None
    return Linear(weight, biases[0].data.as_strided((sum(outputs),), (1,)))


def _follows(first: Tensor, second: Tensor) -> bool:
    """Say whether the entries of a tensor come after those of another in the same memory."""
    storages = {one.untyped_storage().data_ptr() for one in (first, second)}
    size = first.shape[-1] * first.element_size()
    return len(storages) == 1 and second.data_ptr() == first.data_ptr() + size


def basis_change(module: nn.Module) -> Tensor | None:
    """Return the matrix that a module's input is multiplied by first, if there is one."""
    return cast("Tensor | None", getattr(module, BASIS_CHANGE, None))


def activation_part(module: nn.Module) -> Activation:
    """Return which activation function a module applies.

    Raises
    ------
    MisfitError
        If it is none that plans have.
    """
    found = ACTIVATIONS.get(type(module))
    if found is None:
        raise MisfitError(f"the activation function {type(module).__name__} is in no decode plan")
    return found


def require_known_code(model: nn.Module) -> None:
    """Refuse a model whose modules do something that a decode plan cannot know.

    Raises
    ------
    MisfitError
        If there is a hook, a replaced `forward` or a class of somebody else, or a module that does
        more than its class and its weights say.
    """
    if any((*_global_forward_hooks.values(), *_global_forward_pre_hooks.values())):
        raise MisfitError("a hook for all modules is registered")
    for name, module in model.named_modules():
        name = name or "the model"
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(not getattr(hook, "in_decode_plan", False) for hook in hooks):
            raise MisfitError(f"{name} has a hook of somebody else")
        own = f"{type(module).__module__}.".startswith(KNOWN_CODE)
        if (
            "forward" in vars(module)
            or not own
            or code_beside(type(module).forward, KNOWN_WRAPPERS)
        ):
            raise MisfitError(f"{name} runs code of somebody else")
        if is_parametrized(module):
            raise MisfitError(f"{name} makes its weights of others in every pass")
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            raise MisfitError(f"{name} shortens its rows to max_norm={module.max_norm}")
