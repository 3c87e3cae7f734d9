"""What was made of a model's modules by hand: no tensor says it, and not the config."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import PreTrainedModel

from trimtab.models.code import code_beside
from trimtab.models.configs import foreign_attention

OURS = "trimtab."
KNOWN_CODE = ("torch.", "transformers.", "accelerate.", OURS)
INERT = nn.Dropout, nn.Identity  # in evaluation mode
SIMPLE = bool, int, float, str, type(None)
PLAIN = *SIMPLE, list, tuple, dict
# What changes no prediction: it says where a module comes from, how it is trained, or which shape
# tensors have. The last follows the length of the latest text.
WITHOUT_EFFECT = {
    "all_tied_weights_keys", "embedding_dim", "gradient_checkpointing", "in_features", "inplace",
    "kernel_config", "loss_type", "name_or_path", "nf", "num_embeddings", "nx", "out_features",
    "padding_idx", "scale_grad_by_freq", "sparse", "training", "vocab_size",
}  # fmt: skip
CACHED = "max_seq_len_cached"


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
    return attention | dict(_between("", model, _made_anew(model)))


def _made_anew(model: PreTrainedModel) -> nn.Module:
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


def _between(
    place: str, module: nn.Module | None, made: nn.Module | None
) -> Iterator[tuple[str, Edit]]:
    """Yield what differs between a module and what the config makes in its place."""
    kinds = _kind(module), _kind(made)
    if kinds[0].startswith(OURS):
        return
    if kinds[0] != kinds[1]:
        yield place, Edit(*kinds)
    if module is None:
        return
    prefix = f"{place}." if place else ""
    if code := _foreign_code(module, is_root=not place):
        yield f"{prefix}hooks", Edit(code, [])
    alike = kinds[0] == kinds[1]
    for name, value in _settings(made if alike else module).items():
        found, expected = _shown(vars(module).get(name, value)), value if alike else None
        if found != expected:
            yield f"{prefix}{name}", Edit(found, expected)
    parts, others = module._modules, {} if made is None else made._modules
    for name in {**others, **parts}:
        yield from _between(f"{prefix}{name}", parts.get(name), others.get(name))


def _kind(module: nn.Module | None) -> str:
    """Return the qualified name of a module's class, the same for all that pass tensors on."""
    if module is None:
        return "nothing"
    kind = nn.Identity if isinstance(module, INERT) else type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _settings(module: nn.Module | None) -> dict[str, Any]:
    """Return numbers and the like that a module computes by."""
    if module is None or isinstance(module, INERT):
        return {}
    return {
        name: _shown(value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, PLAIN)
        and name not in WITHOUT_EFFECT
        and not name.startswith("_")
        and not name.endswith(CACHED)
        and "drop" not in name
    }


def _shown(value: Any) -> Any:
    return value if isinstance(value, SIMPLE) else repr(value)


def _foreign_code(module: nn.Module, *, is_root: bool) -> list[str]:
    """Return the names of somebody else's functions that run with, or instead of, a module's."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if is_root:
        hooks += [*_global_forward_pre_hooks.values(), *_global_forward_hooks.values()]
    if "forward" in vars(module):
        hooks.append(vars(module)["forward"])
    return [name for hook in hooks if (name := code_beside(hook, KNOWN_CODE))]
