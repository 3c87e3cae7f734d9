"""The attention function of the engine, under a name that transformers' models can be told to use.

A forward pass carries its step among the keyword arguments, which every supported architecture
hands through to the attention function. No mask is made: transformers makes none for a name that
it has no mask function for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from toolkit.errors import MisfitError, TrimtabError
from toolkit.generation.steps import Step

NAME = "trimtab"
# Terms that some attention functions add to the scores; no supported architecture passes them.
FOREIGN = ("s_aux", "position_bias")


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    step: Step | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' models ask for it, by the step of the forward pass."""
    if step is None:
        raise TrimtabError(
            "the model is in the hands of a generation engine: call engine.generate, or leave the "
            "engine's `with` before using the model otherwise"
        )
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    if foreign or dropout or not getattr(module, "is_causal", True):
        raise MisfitError(
            f"{type(module).__name__} asks for {', '.join(foreign) or 'dropout or later tokens'}: "
            "the generation engine's attention is causal, with windows and soft caps only"
        )
    return step.attend(module, query, key, value, scaling, sliding_window, softcap), None


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Have a model use `attention` for the time of the ``with``."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, attention)
