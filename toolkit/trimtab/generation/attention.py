"""The engine's attention function, registered under a name that transformers' models can select.

A forward pass carries its step among the keyword arguments, which every supported architecture
passes on to the attention function. transformers builds no mask for a name without a mask function.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from trimtab.errors import TrimtabError
from trimtab.generation.steps import Step
from trimtab.vattention.attention import AttentionSpec, require_plain

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
    """Attend with the step of the forward pass, under the signature that transformers expects."""
    if step is None:
        raise TrimtabError(
            "a generation engine holds the model, or held it when this copy was made: call "
            "engine.generate, or leave the engine's `with` before using or copying the model"
        )
    require_plain(module, dropout, others)
    spec = AttentionSpec(scaling, sliding_window, softcap)
    return step.attend(module, query, key, value, spec), None


AttentionInterface.register(NAME, attention)
