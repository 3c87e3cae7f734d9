"""Rows fitted by gradient through a model in float16."""

from __future__ import annotations

import copy

import torch

from tests.conftest import random_inputs, tiny
from trimtab.adaptivocab.rows.gradient import match_hidden_states
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.models.sources import DType

NEW = 8


def merged_by_pairs(base: torch.Tensor, size: int) -> Passage:
    """Return a text in which every other pair of tokens is one of `NEW` n-grams."""
    ends = torch.arange(2, len(base) + 1, 2)
    merged = base[::2].clone()
    merged[::2] = size + torch.arange(len(merged[::2])) % NEW
    return Passage(base, merged, ends - 2, ends, len(base))


def test_rows_of_a_model_whose_gradients_are_too_small_for_float16_are_those_of_float32():
    """The larger the hidden states, the less a relative distance changes with each entry."""
    narrow = tiny("tiny-llama", DType.float16).model.requires_grad_(False)
    embedding = narrow.get_input_embeddings()
    embedding.weight.mul_(15_000)
    wide = copy.deepcopy(narrow).float()
    rows = wide.get_input_embeddings().weight[:NEW].clone()
    size = embedding.weight.shape[0]
    passages = [merged_by_pairs(text, size) for text in random_inputs(4, 256)]
    found, expected = (match_hidden_states(part, rows, passages, None) for part in (narrow, wide))
    assert (found - expected).norm() < 1e-3 * (expected - rows).norm()
