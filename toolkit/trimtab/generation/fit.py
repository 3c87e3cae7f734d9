"""What an engine can run, and what it refuses before anything has run."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.adapter import adapter_for
from trimtab.models.facts import longest_text
from trimtab.vattention.layout import Geometry


def check_model(model: PreTrainedModel, max_len: int) -> None:
    """Refuse a model that an engine cannot run, or not with texts of that many tokens.

    Raises
    ------
    MisfitError
        If the architecture is not supported, or the model in training mode or on several devices.
    TrimtabError
        If the model has too few positions.
    """
    layers = adapter_for(model).decoder_layers(model)
    devices = {parameter.device for layer in layers for parameter in layer.parameters()}
    if len(devices) > 1:
        raise MisfitError(
            f"the model lies on {len(devices)} devices and a KV cache on one: load it without a "
            "device map"
        )
    if model.training:
        raise MisfitError("the model is in training mode: call model.eval() first")
    longest = longest_text(model.config)
    if max_len > longest:
        raise TrimtabError(
            f"max_len={max_len}: {type(model).__name__} has positions for {longest} tokens: lower "
            "it to that, or to less"
        )


def capacity(geometry: Geometry, page: int, budget: int | None) -> int:
    """Return the most tokens that one sequence alone can have.

    Parameters
    ----------
    geometry : Geometry
    page : int
        Bytes of a page.
    budget : int or None
        The most bytes of pages, where there is such a limit.
    """
    if budget is None:
        return geometry.max_len
    rows = budget // (page * geometry.streams)
    return min(geometry.max_len, rows * page // geometry.row_bytes)


def check_prompts(
    prompts: Sequence[Sequence[int]], room: int, max_len: int, vocabulary: int
) -> None:
    """Refuse prompts that are empty, or do not fit into `room` tokens with one token behind.

    Parameters
    ----------
    vocabulary : int
        How many tokens the model knows.

    Raises
    ------
    TrimtabError
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise TrimtabError(f"prompt {index} has no tokens: give it at least one")
        if unknown := [token for token in prompt if not 0 <= token < vocabulary]:
            raise TrimtabError(
                f"prompt {index} has the token {unknown[0]}: expected ids from 0 to "
                f"{vocabulary - 1}; is the tokenizer the model's?"
            )
        if len(prompt) >= room:
            by_length = room == max_len
            limit = "max_len allows" if by_length else "the budget of the KV cache has memory for"
            fix = "max_len" if by_length else "the budget"
            raise TrimtabError(
                f"prompt {index} has {len(prompt)} tokens: with one behind it, it is longer than "
                f"the {room} that {limit}; raise {fix}, or shorten the prompt"
            )


def limits(max_new_tokens: int | Sequence[int], count: int) -> list[int]:
    """Return the most tokens to generate for each of `count` prompts.

    Raises
    ------
    TrimtabError
        If one is no integer or below 1, or there are not as many as prompts.
    """
    each = max_new_tokens if isinstance(max_new_tokens, Iterable) else [max_new_tokens] * count
    try:
        found = [operator.index(limit) for limit in each]
    except TypeError:
        found = [0]
    if len(found) != count or min(found, default=1) < 1:
        raise TrimtabError(
            f"max_new_tokens={max_new_tokens}: expected integers of at least 1, once or for each "
            f"of the {count} prompts"
        )
    return found
