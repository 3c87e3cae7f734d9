"""What callers hand over, told from what is easily mistaken for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn
from transformers import PreTrainedTokenizerBase

from trimtab.errors import MisfitError, TrimtabError

NAMED = "keys", "columns", "column_names"  # of tables, whose iteration yields the names


NO_LISTINGS = str, bytes, bytearray, memoryview, Mapping, Set


def is_listing(value: object) -> TypeGuard[Iterable[Any]]:
    """Return whether iterating a value yields what it holds, in an order.

    Mappings and tables (a DataFrame, a Dataset) yield names, a text its characters, and a set has
    no order.
    """
    if not isinstance(value, Iterable) or isinstance(value, NO_LISTINGS):
        return False
    dimensions = getattr(value, "ndim", None)
    if dimensions == 1:  # a Series has keys, and yields its values
        return True
    return dimensions != 0 and not any(hasattr(value, name) for name in NAMED)


def shown(value: object) -> str:
    """Return what a value looks like, in one short line."""
    return f"{' '.join(repr(value).split()):.60}"


def require_model(model: object, name: str = "model") -> None:
    """Raise `TrimtabError` unless it is a model that is loaded."""
    if not isinstance(model, nn.Module):
        order = ""
        if isinstance(model, PreTrainedTokenizerBase):
            order = "; the model comes first, then the tokenizer"
        raise TrimtabError(
            f"{name}={shown(model)}: expected a model that is loaded, as "
            f"AutoModelForCausalLM.from_pretrained returns it{order}"
        )


def require_language_model(model: object, name: str = "model") -> None:
    """Raise `TrimtabError` unless it is a model that is loaded and generates text."""
    require_model(model, name)
    generates = getattr(model, "can_generate", None)
    if generates is None or not generates():
        raise MisfitError(
            f"{name} is a {type(model).__name__}, which generates no text: expected a model as "
            "AutoModelForCausalLM.from_pretrained returns it; of a wrapper, give the model inside"
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise MisfitError(
            f"{name} is a {type(model).__name__}, which has an encoder: expected a decoder-only "
            "model, as AutoModelForCausalLM.from_pretrained returns it"
        )


def require_tokenizer(tokenizer: object, name: str = "tokenizer") -> None:
    """Raise `TrimtabError` unless it is a tokenizer of transformers that can be called."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TrimtabError(
            f"{name}={shown(tokenizer)}: expected a tokenizer of transformers, as "
            "AutoTokenizer.from_pretrained returns it"
        )
    length = tokenizer.model_max_length  # which every text is compared with
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise TrimtabError(
            f"tokenizer_config.json has model_max_length={shown(length)}: expected a number of "
            "tokens: correct it or download it again"
        )


def require_path(path: object, name: str = "folder") -> Path:
    """Return a path as one, or raise `TrimtabError` where it is something else."""
    if not isinstance(path, str | PathLike):
        raise TrimtabError(f"{name}={shown(path)}: expected a path")
    return Path(path)
