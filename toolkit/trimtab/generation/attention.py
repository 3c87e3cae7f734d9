"""The attention function of the engine, under a name that transformers' models can be told to use.

A forward pass carries its step among the keyword arguments, which every supported architecture
hands through to the attention function. No mask is made: transformers makes none for a name that
it has no mask function for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from trimtab.errors import TrimtabError
from trimtab.generation.steps import Step
from trimtab.vattention.attention import Scoring, require_plain

NAME = "trimtab"


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
    require_plain(module, dropout, others)
    scoring = Scoring(scaling, sliding_window, softcap)
    return step.attend(module, query, key, value, scoring), None


AttentionInterface.register(NAME, attention)
