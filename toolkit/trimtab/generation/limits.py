"""What an engine can run, and what it refuses before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel

from trimtab.arguments import is_listing, shown
from trimtab.errors import MisfitError, TrimtabError
from trimtab.generation.prompts import whole_numbers
from trimtab.models.adapter import adapter_for
from trimtab.models.configs import require_stock_attention
from trimtab.models.facts import longest_text
from trimtab.models.state import require_evaluation, require_in_memory
from trimtab.settings import is_whole
from trimtab.vattention.layout import Geometry


def require_size(name: str, value: object) -> None:
    """Raise `TrimtabError` unless a size is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise TrimtabError(f"{name}={value!r:.60}: expected a whole number of at least 1")


def require_callables(**given: object) -> None:
    """Raise `TrimtabError` unless every argument is a function of a prompt's index, or None."""
    for name, value in given.items():
        if value is not None and (isinstance(value, list) or not callable(value)):
            raise TrimtabError(
                f"{name}={shown(value)}: expected a function, called with the index of a prompt "
                "first, or None"
            )


def check_model(model: PreTrainedModel, max_len: int) -> None:
    """Refuse a model that an engine cannot run, or cannot run on texts of `max_len` tokens.

    Raises
    ------
    MisfitError
        If the architecture or the attention function is not supported, or the model is in training
        mode, on several devices or not in memory; or its layers are not numbered.
    TrimtabError
        If the model has too few positions.
    """
    adapter = adapter_for(model)
    layers = adapter.decoder_layers(model)
    attention: list[Any] = [dict(layer.named_modules()).get(adapter.attention) for layer in layers]
    places = [one.layer_idx for one in attention if hasattr(one, "layer_idx")]
    if len({*places} & {*range(len(layers))}) < len(places):
        raise MisfitError(
            f"the attention of the model's {len(layers)} layers has layer_idx={places}: expected "
            f"0 to {len(layers) - 1}, each once, as each has a KV cache of its own by that number; "
            "set it anew where layers were taken out, copied or added"
        )
    devices = {parameter.device for layer in layers for parameter in layer.parameters()}
    if len(devices) > 1:
        raise MisfitError(
            f"the model lies on {len(devices)} devices and a KV cache on one: load it without a "
            "device map"
        )
    require_in_memory(model)
    require_evaluation(model)
    require_stock_attention(model)
    longest = longest_text(model.config)
    if max_len > longest:
        raise TrimtabError(
            f"max_len={max_len}: {type(model).__name__} has positions for {longest} tokens; give "
            "that or less"
        )


def capacity(geometry: Geometry, page: int, budget: int | None) -> int:
    """Return the most tokens that a single sequence can have.

    Parameters
    ----------
    geometry : Geometry
    page : int
        Bytes of a page.
    budget : int or None
        The most bytes of pages, if limited.
    """
    if budget is None:
        return geometry.max_len
    rows = budget // (page * geometry.planes)
    return min(geometry.max_len, rows * page // geometry.row_bytes)


def check_prompts(
    prompts: Sequence[Sequence[int]],
    room: int,
    vocabulary: int,
    source: str = "the model's positions",
    fix: str = "",
) -> None:
    """Refuse prompts that are empty, unknown to the model, or leave no room to generate a token.

    Parameters
    ----------
    prompts : sequence of sequence of int
    room : int
        The most tokens of a prompt and its continuation.
    vocabulary : int
        How many tokens the model knows.
    source, fix : str
        What sets `room`, and what to do about it besides shortening the prompt.

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
            allow = "allow" if source.endswith("s") else "allows"
            raise TrimtabError(
                f"prompt {index} has {len(prompt)} tokens: {source} {allow} {room}, including at "
                f"least one generated token; {fix}shorten the prompt"
            )


def token_limits(max_new_tokens: int | Sequence[int], count: int) -> list[int]:
    """Return the most tokens to generate for each of `count` prompts.

    Raises
    ------
    TrimtabError
        If a limit is no integer or below 1, or there are not as many limits as prompts.
    """
    each: Any = max_new_tokens if is_listing(max_new_tokens) else [max_new_tokens] * count
    try:
        found = whole_numbers(each)
    except TypeError:
        found = [0]
    if len(found) != count or min(found, default=1) < 1:
        raise TrimtabError(
            f"max_new_tokens={shown(max_new_tokens)}: expected integers of at least 1: one, or one "
            f"for each of the {count} prompts"
        )
    return found


def given_texts(
    given: Iterable[Iterable[int]], prompts: Sequence[Sequence[int]], vocabulary: int
) -> list[list[int]]:
    """Return the given tokens of each prompt's text, none where nothing is given.

    Raises
    ------
    TrimtabError
        If there are not as many texts as prompts, or one is not of the model's tokens.
    """
    if not is_listing(given):
        raise TrimtabError(
            f"given={shown(given)}: expected the token ids of a text for each prompt"
        )
    texts = [known_tokens(text, vocabulary, "given") for text in given]
    if texts and len(texts) != len(prompts):
        raise TrimtabError(
            f"given: {len(texts)} texts; expected one for each of the {len(prompts)} prompts"
        )
    return texts or [[]] * len(prompts)


def known_tokens(ids: Iterable[int], vocabulary: int, name: str) -> list[int]:
    """Return token ids as a list.

    Parameters
    ----------
    vocabulary : int
        How many tokens the model knows.
    name : str
        Of the argument that they come from.

    Raises
    ------
    TrimtabError
        If they are something else, or one is none of the model's.
    """
    try:
        found = whole_numbers(ids)
    except TypeError as error:
        raise TrimtabError(f"{name}={shown(ids)}: expected token ids") from error
    if unknown := [token for token in found if not 0 <= token < vocabulary]:
        raise TrimtabError(
            f"{name}: token {unknown[0]}; expected 0 to {vocabulary - 1}, the model's tokens"
        )
    return found
