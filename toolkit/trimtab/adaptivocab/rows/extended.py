"""A model with n-grams in its vocabulary, for the time of a ``with``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from trimtab.errors import TrimtabError
from trimtab.models.changes import undone_in_order, undone_together
from trimtab.models.state import mend_not_finite


@dataclass(frozen=True)
class NewRows:
    """What n-grams add to a model, and what they change in it.

    Parameters
    ----------
    input, head : Tensor
        Rows to append to the embedding and to the head, of shape [n-grams, width].
    changed : Tensor
        Base tokens whose head rows make room for n-grams that begin with them, int64 of
        shape [tokens].
    changed_head : Tensor
        Those head rows, of shape [tokens, width].
    """

    input: Tensor
    head: Tensor
    changed: Tensor
    changed_head: Tensor

    @classmethod
    def of_input(cls, rows: Tensor) -> NewRows:
        """Return `rows` for the embedding, and nothing for the head."""
        nothing = rows[:0]
        return cls(rows, nothing, torch.empty(0, dtype=torch.int64), nothing)

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))


@undone_in_order
def extended(model: PreTrainedModel, rows: NewRows, *, output: bool) -> Iterator[None]:
    """Give `model` the new rows; its own parameters are put back afterwards.

    Parameters
    ----------
    output : bool
        Whether the head gets its rows too, so that n-grams can be predicted. Otherwise it stays
        as it is, and so do all logits after text without n-grams.

    Raises
    ------
    TrimtabError
        If the rows are not finite.

    Notes
    -----
    A tied head is untied: one row cannot say both what an n-gram means and when it follows.
    """
    if not all(tensor.isfinite().all() for tensor in rows.to_tensors().values()):
        raise TrimtabError(f"the rows made for n-grams are not finite: {mend_not_finite(model)}")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights: tuple[Any, Any] = embedding.weight, head.weight
    with _own_config(model.config, model) as config:
        settings = config.vocab_size, config.tie_word_embeddings
        try:
            _set_rows(embedding, torch.cat([weights[0], rows.input.to(weights[0])]))
            config.tie_word_embeddings = False
            if output:
                _set_rows(head, extended_head(weights[1], rows))
                config.vocab_size = head.weight.shape[0]
            yield
        finally:
            for module, weight in zip((embedding, head), weights, strict=True):
                _set_rows(module, weight)
            config.vocab_size, config.tie_word_embeddings = settings


@undone_in_order
def _own_config(shared: PreTrainedConfig, model: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    """Give `model` a copy of its config, which other models may share, within the block.

    What is set in it meanwhile is set in the model's own afterwards; what sets it for a time is
    left before.
    """
    own = copy(shared)
    undone_together(own, shared)
    before = dict(vars(own))
    holders: list[Any] = [one for one in model.modules() if vars(one).get("config") is shared]
    for one in holders:
        one.config = own
    try:
        yield own
    finally:
        for one in holders:
            one.config = shared
        news = {name for name, value in vars(own).items() if value is not before.get(name)}
        vars(shared).update({name: vars(own)[name] for name in news})


@contextmanager
def base_head(model: PreTrainedModel, weight: nn.Parameter) -> Iterator[None]:
    """Have an extended model predict base tokens alone, with the `weight` of its own head."""
    head, size = model.get_output_embeddings(), model.config.vocab_size
    current = head.weight
    try:
        _set_rows(head, weight)
        model.config.vocab_size = weight.shape[0]
        yield
    finally:
        _set_rows(head, current)
        model.config.vocab_size = size


def extended_head(weight: Tensor, rows: NewRows) -> Tensor:
    """Return a head's matrix with room made for the n-grams, and their rows appended."""
    made = torch.cat([weight.detach(), rows.head.to(weight)])
    made[rows.changed.to(weight.device)] = rows.changed_head.to(weight)
    return made


def _set_rows(module: nn.Module, weight: Tensor) -> None:
    """Make `weight` the parameter of an embedding or a linear layer, and its row count."""
    known = isinstance(weight, nn.Parameter)
    module.weight = weight if known else nn.Parameter(weight.detach(), requires_grad=False)
    size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
    setattr(module, size, weight.shape[0])
