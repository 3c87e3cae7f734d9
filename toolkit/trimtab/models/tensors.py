"""Which tensors a model has, and which of them are one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.models.edits import OURS, Edit, made_anew


def firsts(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name of every tensor, and the first name in `tensors` of the same one."""
    known: dict[object, str] = {}
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        same = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        found[name] = known.setdefault(same, name) if tensor.numel() else name
    return found


def shared(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors that are others too, and the first names of those.

    The head and the embedding may be one, whatever the config says: all that reads models knows it.
    """
    words = model.get_input_embeddings(), model.get_output_embeddings()
    tied = {f"{name}.weight" for name, one in model.named_modules() if _is_among(one, words)}
    return {
        name: first
        for name, first in firsts(tensors).items()
        if name != first and not {name, first} <= tied
    }


def _is_among(module: nn.Module, others: Collection[nn.Module | None]) -> bool:
    return any(module is one for one in others)


def tensors_unlike_config(model: PreTrainedModel, free: Collection[str] = ()) -> dict[str, Edit]:
    """Return the tensors of checkpoints that are not those the model's config makes, by name.

    That is other names or shapes, and tensors that are others too. A sparse model has its own.

    Parameters
    ----------
    model : PreTrainedModel
    free : collection of str
        Names that may be there or not, and of any shape.
    """
    if any(_is_ours(module) and [*module.parameters()] for module in model.modules()):
        return {}
    found, expected = model.state_dict(), made_anew(model).state_dict()
    edits = {
        name: Edit(*(_shape(state.get(name)) for state in (found, expected)))
        for name in {**expected, **found}
        if name not in free and _shape(found.get(name)) != _shape(expected.get(name))
    }
    ties = shared(model, found).items()
    return edits | {name: Edit(f"the same as {one}", "a tensor of its own") for name, one in ties}


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith(OURS)


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"of shape {[*tensor.shape]}"
