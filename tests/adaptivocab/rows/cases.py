"""A model that is sure of a few tokens, and passages of these tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import tiny
from trimtab.adaptivocab.ngrams import Matcher, NGrams
from trimtab.adaptivocab.rows.passages import Passage

START = 257
# Of few tokens, so that texts go on as n-grams do; (3, 1, 2) and (0, 1, 2, 3) lack prefixes.
NGRAMS = NGrams(320, ((0, 1), (0, 1, 2, 3), (1, 1), (1, 1, 0), (3, 1, 2), (0, 2)))


def sharp(name: str = "tiny-llama") -> PreTrainedModel:
    """Return a model that is surer of the texts' tokens than random weights are."""
    model = tiny(name).model
    head = model.get_output_embeddings()
    weight = head.weight.detach().clone()
    weight[:5] = 0.7 * torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


def passage(seed: int, length: int = 60) -> Passage:
    base = torch.randint(0, 5, (length,), generator=torch.Generator().manual_seed(seed))
    spans = Matcher(NGRAMS)(base.tolist())
    begins, ends, merged = (torch.tensor(part) for part in zip(*spans, strict=True))
    return Passage(base, merged, begins, ends, length)


@torch.no_grad()
def next_probabilities(model, text: list[int], start: int | None) -> Tensor:
    """Return what comes after a text according to the model, reading that text alone."""
    seen = text if start is None else [start, *text]
    if not seen:
        return torch.full((320,), 1 / 320)
    return model(input_ids=torch.tensor([seen])).logits[0, -1].softmax(-1)
