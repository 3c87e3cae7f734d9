"""What was made of a model's modules by hand: no tensor says it, and not the config."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import PreTrainedModel

from trimtab.models.code import code_beside, digest_of
from trimtab.models.configs import foreign_attention

OURS = "trimtab."
KNOWN_CODE = ("torch.", "transformers.", "accelerate.", OURS)
INERT = nn.Dropout, nn.Identity  # in evaluation mode; subclasses may do more
SIMPLE = bool, int, float, str, type(None)
FUNCTIONS = FunctionType, BuiltinFunctionType, partial
ARRAYS = Tensor, np.ndarray
PLAIN = *SIMPLE, list, tuple, dict, np.generic, *ARRAYS, *FUNCTIONS
# What changes no prediction: it says where a module comes from, how it is trained, or which shape
# tensors have. A `forward` is named with the hooks.
WITHOUT_EFFECT = {
    "all_tied_weights_keys", "embedding_dim", "forward", "gradient_checkpointing", "in_features",
    "inplace", "kernel_config", "loss_type", "name_or_path", "nf", "num_embeddings", "nx",
    "out_features", "padding_idx", "scale_grad_by_freq", "sparse", "training", "vocab_size",
}  # fmt: skip
CACHED = "max_seq_len_cached"  # follows the length of the latest text


@dataclass(frozen=True)
class Edit:
    """What is not as the config makes it.

    Parameters
    ----------
    found, expected
        A setting's value, or names of a class or of functions.
    """

    found: Any
    expected: Any


def edits(model: PreTrainedModel) -> dict[str, Edit]:
    """Return what modules compute by that is not what the model's config makes of them.

    That is another class or setting than theirs, a hook or a ``forward`` of somebody else, a
    module more or less; and an attention function that is not transformers'. What our methods put
    in the place of modules says itself what it does (`trimtab.models.fingerprint`).

    Returns
    -------
    dict of str to Edit
        By the names of modules, settings and ``hooks``.
    """
    attention = {
        name: Edit(found, "transformers' own") for name, found in foreign_attention(model).items()
    }
    return attention | dict(_between("", model, made_anew(model)))


def made_anew(model: PreTrainedModel) -> nn.Module:
    """Return what the config makes, without memory for tensors; else the model itself.

    Where a quantizer has replaced modules, the config alone does not make them.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return model
    try:
        with torch.device("meta"):
            return type(model)(copy.deepcopy(model.config))
    except Exception:  # of any type, where the config was edited by hand
        return model


def _between(place: str, module: Any, made: nn.Module | None) -> Iterator[tuple[str, Edit]]:
    """Yield what differs between a module, or a function, and what the config makes there."""
    kinds = _kind(module), _kind(made)
    if kinds[0].startswith(OURS):
        return
    if kinds[0] != kinds[1]:
        yield place, Edit(*kinds)
    if not isinstance(module, nn.Module):
        return
    prefix = f"{place}." if place else ""
    if code := _code_beside(module, is_root=not place):
        yield f"{prefix}hooks", Edit(code, [])
    alike = kinds[0] == kinds[1]
    for name, value in _settings(made if alike else module).items():
        found, expected = _shown(vars(module).get(name, value)), value if alike else None
        if found != expected:
            yield f"{prefix}{name}", Edit(found, expected)
    parts, others = module._modules, {} if made is None else made._modules
    for name in {**others, **parts}:
        part = parts.get(name, vars(module).get(name))
        yield from _between(f"{prefix}{name}", part, others.get(name))


def _kind(module: Any) -> str:
    """Return the name of a module's class or of a function, the same for all that pass tensors on.

    Somebody else's code shows in it, too.
    """
    if module is None:
        return "nothing"
    if not isinstance(module, nn.Module):
        return _described(module)
    kind = nn.Identity if type(module) in INERT else type(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    beside = code_beside(kind.forward, KNOWN_CODE)
    return f"{name} ({digest_of(kind.forward)})" if beside else name


def _settings(module: nn.Module | None) -> dict[str, Any]:
    """Return numbers and the like that a module computes by."""
    if module is None or type(module) in INERT:
        return {}
    return {
        name: _shown(value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, PLAIN)
        and not getattr(value, "is_meta", False)
        and name not in WITHOUT_EFFECT
        and not name.startswith("_")
        and not name.endswith(CACHED)
        and "drop" not in name
    }


def _shown(value: Any) -> Any:
    if isinstance(value, FUNCTIONS):
        return _described(value)
    if isinstance(value, ARRAYS):
        return f"{type(value).__name__} ({digest_of(value)})"
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, SIMPLE) else repr(value)


def _described(function: Any) -> str:
    """Return a function's name, and a digest of what it computes by where the name does not say."""
    if name := code_beside(function, KNOWN_CODE):
        return f"{name} ({digest_of(function)})"
    name = code_beside(function, ()) or ""
    return f"{name} ({digest_of(function)})" if isinstance(function, partial) else name


def _code_beside(module: nn.Module, *, is_root: bool) -> list[str]:
    """Return the names of functions that run with, or instead of, a module's own."""
    found = code_before(module) + code_after(module)
    if is_root:
        found += code_of_all_modules() + code_of_class(module)
    return found


def code_of_all_modules() -> list[str]:
    """Return the names of somebody else's functions that run around every module there is."""
    return _foreign([*_global_forward_pre_hooks.values(), *_global_forward_hooks.values()])


def code_of_class(module: nn.Module) -> list[str]:
    """Return the name of the ``forward`` of a module's class, if that is somebody else's."""
    return _foreign([type(module).forward])


def code_before(module: nn.Module) -> list[str]:
    """Return the names of somebody else's functions that a module's inputs go through first."""
    found = _foreign(module._forward_pre_hooks.values())
    own = vars(module).get("forward")
    if own is not None and (code_beside(own, KNOWN_CODE) or _replaces(own, type(module).forward)):
        found.append(_described(own))
    return found


def code_after(module: nn.Module) -> list[str]:
    """Return the names of somebody else's functions that get a module's outputs, and its inputs."""
    return _foreign(module._forward_hooks.values())


def _foreign(functions: Iterable[Any]) -> list[str]:
    return [_described(one) for one in functions if code_beside(one, KNOWN_CODE)]


def _replaces(function: Any, own: Any) -> bool:
    """Say whether a function is neither a class's own nor made around it, as compiled ones are."""
    function = inspect.unwrap(function)
    if isinstance(function, partial):
        function = inspect.unwrap(function.func)
    function = getattr(function, "__func__", function)
    return isinstance(function, FUNCTIONS) and function is not inspect.unwrap(own)
