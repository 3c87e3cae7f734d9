from __future__ import annotations

import pytest
import torch

from tests.adaptivocab.tokenizers import DOCUMENTS, EVERY, TEXTS, base, extended, ngrams
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.corpus import encode

every = pytest.mark.parametrize("kind", EVERY)


@every
def test_a_passage_is_one_text_tokenized_both_ways(kind):
    merged_away = 0
    for text in DOCUMENTS[:4] + TEXTS:
        passage = Passage.of(text, extended(kind), ngrams(kind))
        assert passage.base.tolist() == encode(base(kind), text)
        assert passage.merged.tolist() == encode(extended(kind), text)
        assert ngrams(kind).expand(passage.merged.tolist()) == passage.base.tolist()
        assert passage.size == len(text.encode())
        merged_away += len(passage.base) - len(passage.merged)
    assert merged_away > 100


@every
def test_each_merged_token_stands_for_the_base_tokens_between_its_bounds(kind):
    passage = Passage.of(DOCUMENTS[0], extended(kind), ngrams(kind))
    for token, start, end in zip(passage.merged, passage.starts, passage.ends, strict=True):
        assert ngrams(kind).expand([int(token)]) == passage.base[start:end].tolist()
    assert passage.starts[0] == 0
    assert passage.ends[-1] == len(passage.base)
    assert torch.equal(passage.starts[1:], passage.ends[:-1])
    assert (passage.ends > passage.starts).all()


def test_a_passage_of_nothing_is_empty():
    passage = Passage.of("", extended("gpt2"), ngrams("gpt2"))
    parts = passage.base, passage.merged, passage.starts, passage.ends
    assert all(part.shape == (0,) and part.dtype == torch.int64 for part in parts)
    assert passage.size == 0
