"""What a sparse model has in place of norms and linear layers, and beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.models.decode_parts import BASIS_CHANGE, in_plan, norm_part
from trimtab_kernels.decode_step import Linear, Selection, SiteInput
from trimtab_kernels.sparse_linear import int8_linear, sparse_linear

Keep = Callable[[Tensor], Tensor]
CACHE_LINE, PAGE = 64, 4096  # bytes


@runtime_checkable
class KeepsInDecodeStep(Protocol):
    """What drops activations by a rule that a decode step can follow."""

    def in_decode_step(self, width: int, device: torch.device) -> Selection:
        """Return what a decode step on a device keeps of `width` activations."""

    def description(self, width: int) -> tuple[Any, ...]:
        """Return, as JSON values, all that decides which of `width` activations are kept."""


def _in_decode_step(selector: Keep, width: int, device: torch.device) -> Selection:
    if not isinstance(selector, KeepsInDecodeStep):
        raise MisfitError(f"{type(selector).__name__} follows no rule that decode plans have")
    return selector.in_decode_step(width, device)


def _described(selector: Keep, width: int) -> tuple[Any, ...]:
    if not isinstance(selector, KeepsInDecodeStep):
        return (type(selector).__name__,)
    return selector.description(width)


def _input_of(weight: Tensor) -> tuple[int, torch.device]:
    """Return how many activations multiply a weight, and where."""
    return len(weight), weight.device


class SparseLinear(nn.Module):
    """A linear layer that stores its weight input-major and skips the rows that zeros multiply.

    Parameters
    ----------
    weight : Tensor
        Of shape [inputs, outputs].
    bias : Tensor or None
        Of shape [outputs].
    selector : callable or None
        Zeroes what is dropped of the inputs, where nothing before has done so.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, selector: Keep | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.selector = selector

    def forward(self, x: Tensor) -> Tensor:
        """Return the product for activations of shape [..., inputs]."""
        selected = x if self.selector is None else self.selector(x)
        return sparse_linear(selected, self.weight, self.bias)

    def linear_part(self) -> Linear:
        """Return the layer as part of a decode plan."""
        return Linear(self.weight, self.bias)

    def site_input(self) -> SiteInput:
        """Return what a decode step does before the product."""
        if self.selector is None:
            return SiteInput()
        return SiteInput(selection=_in_decode_step(self.selector, *_input_of(self.weight)))

    def beside_tensors(self) -> Any:
        """Return what the layer drops of its input."""
        return None if self.selector is None else _described(self.selector, len(self.weight))


@torch.no_grad()
def side_by_side(
    linears: Sequence[tuple[Tensor, Tensor | None]],
) -> list[tuple[Tensor, Tensor | None]]:
    """Return input-major weights and biases as views of one memory for all of them.

    An input's weights then follow one another from layer to layer, so that a decode step reads
    one long row where there were several short ones.
    """
    weights, biases = zip(*linears, strict=True)
    sizes = [weight.shape[1] for weight in weights]
    beside = torch.cat(weights, dim=1, out=_rows(weights[0], sum(sizes))).split(sizes, dim=1)
    if all(bias is not None for bias in biases):
        biases = torch.cat(biases).split(sizes)
    return list(zip(beside, biases, strict=True))


def _rows(like: Tensor, length: int) -> Tensor:
    """Return room for rows as long as that, as many as `like` has, and none whole pages apart.

    Rows at the same place of their pages take each other's few lines of a processor's first cache,
    which slows down the library's product with a prompt.
    """
    size = like.element_size()
    apart = length + (CACHE_LINE // size if length * size % PAGE == 0 else 0)
    return like.new_empty(len(like), apart)[:, :length]


class SparseNorm(nn.Module):
    """A norm whose output is transformed and selected for all the linear layers that read it.

    Parameters
    ----------
    norm : Module
    transform : Tensor or None
        T of shape [d, d], in the model's dtype or int8.
    transform_scale : Tensor or None
        With int8, what every column of T is multiplied by, float32 of shape [d].
    selector : callable
        Zeroes what is dropped.
    """

    def __init__(
        self,
        norm: nn.Module,
        transform: Tensor | None,
        transform_scale: Tensor | None,
        selector: Keep,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.transform, self.transform_scale = (
            None if part is None else nn.Parameter(part, requires_grad=False)
            for part in (transform, transform_scale)
        )
        self.selector = selector

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert as `to`, `half` and the like ask for; an int8 transform keeps its dtypes."""
        quantized = self.transform_scale is not None
        names = ("transform", "transform_scale") if quantized else ()
        stored = {name: self.get_parameter(name).data for name in names}
        super()._apply(function, recurse)
        for name, before in stored.items():
            made = self.get_parameter(name)
            if made.dtype != before.dtype:
                made.data = before.to(made.device)
        return self

    @property
    def transform_bytes(self) -> int:
        """Bytes of the transform and its scale."""
        parts = self.transform, self.transform_scale
        return sum(part.nbytes for part in parts if part is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected activations, of shape [..., d]."""
        z = self.norm(x)
        if self.transform is None:
            return self.selector(z)
        if self.transform_scale is None:
            return self.selector(z @ self.transform)
        return self.selector(int8_linear(z, self.transform, self.transform_scale))

    def site_input(self) -> SiteInput:
        """Return what a decode step makes of the activations."""
        norm = norm_part(self.norm)
        selection = _in_decode_step(self.selector, *_input_of(norm.weight))
        return SiteInput(norm, self.transform, self.transform_scale, selection)

    def beside_tensors(self) -> Any:
        """Return which norm it is, and what is dropped of its output."""
        norm = norm_part(self.norm)
        return norm.centers, norm.epsilon, _described(self.selector, len(norm.weight))


def change_basis(module: nn.Module, matrix: Tensor) -> RemovableHandle:
    """Have what `module` reads multiplied by a matrix, which becomes its buffer `BASIS_CHANGE`.

    Other hooks of the module see the product. The handle takes the multiplication away again, but
    not the buffer.
    """
    module.register_buffer(BASIS_CHANGE, matrix)
    return module.register_forward_pre_hook(_multiply, prepend=True)


@in_plan
def _multiply(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] @ getattr(module, BASIS_CHANGE), *inputs[1:])


@contextmanager
def basis_changed(module: nn.Module, matrix: Tensor) -> Iterator[None]:
    """Have what `module` reads multiplied by a matrix for the time of the ``with``."""
    handle = change_basis(module, matrix)
    try:
        yield
    finally:
        handle.remove()
        delattr(module, BASIS_CHANGE)


def refuse_hidden_states(decoder: nn.Module) -> RemovableHandle:
    """Have a decoder refuse to return its layers' hidden states, which are not in its own basis."""
    return decoder.register_forward_pre_hook(_refuse_hidden_states, with_kwargs=True)


@in_plan
def _refuse_hidden_states(
    decoder: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    config = cast(PreTrainedModel, decoder).config
    wanted = keywords.get("output_hidden_states")
    if config.output_hidden_states if wanted is None else wanted:
        raise ValueError(
            "output_hidden_states: between the layers LaRoSA has rotated the residual stream; "
            "calibrate with residual=none, the default, or ask the unmodified model"
        )
