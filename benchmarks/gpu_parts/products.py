"""The products of decode steps, by the names of models: which matrices they read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from transformers import AutoConfig

from trimtab.models.adapter import head_shape
from trimtab.models.shapes import shape_of


class Product(NamedTuple):
    """Inputs and outputs of a product, and what it is in which models."""

    inputs: int
    outputs: int
    of: str

    @property
    def name(self) -> str:
        """The shape."""
        return f"{self.inputs}x{self.outputs}"


def products(models: Iterable[str]) -> list[Product]:
    """Return the shapes of all products, each once, those of weights side by side among them."""
    found: dict[tuple[int, int], list[str]] = {}
    for model in models:
        for part, shape in _shapes(model).items():
            found.setdefault(shape, []).append(f"{model} {part}")
    return [Product(*shape, ", ".join(of)) for shape, of in found.items()]


def widths(models: Iterable[str]) -> list[int]:
    """Return how many activations products read, each number once."""
    return sorted({one.inputs for one in products(models)})


def model_widths(models: Iterable[str]) -> list[int]:
    """Return the widths of the residual streams, each once."""
    return sorted({AutoConfig.for_model(**shape_of(model)).hidden_size for model in models})


def _shapes(model: str) -> dict[str, tuple[int, int]]:
    config = AutoConfig.for_model(**shape_of(model))
    heads, width = head_shape(config), config.hidden_size
    query, key = (count * heads.head_dim for count in (heads.heads, heads.kv_heads))
    hidden = config.intermediate_size
    return {
        "q": (width, query),
        "k, v": (width, key),
        "q, k, v side by side": (width, query + 2 * key),
        "o": (query, width),
        "gate, up": (width, hidden),
        "gate, up side by side": (width, 2 * hidden),
        "down": (hidden, width),
    }
