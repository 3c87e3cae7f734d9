from __future__ import annotations

import pytest
import torch

from tests.adaptivocab.tokenizers import DOCUMENTS, EVERY, TEXTS, base, extended, ngrams
from trimtab.adaptivocab.rows.passages import Passage, cut
from trimtab.corpus import Document, encode

WINDOW = 64
LETTERS = [text for text in DOCUMENTS if text.isascii()]

every = pytest.mark.parametrize("kind", EVERY)


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(number), text) for number, text in enumerate(texts)]


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


def test_texts_are_of_so_many_tokens_and_follow_each_other():
    for text in LETTERS[:4]:
        parts = cut(documents([text]), base("gpt2"), 10**9, WINDOW)
        assert text.startswith("".join(parts))
        lengths = [len(encode(base("gpt2"), part)) for part in parts]
        assert lengths[:-1] == pytest.approx([WINDOW] * (len(parts) - 1), abs=2)  # cuts split words
        missing = len(encode(base("gpt2"), text.removeprefix("".join(parts))))
        assert missing < WINDOW // 2


@pytest.mark.parametrize(
    ("length", "expected"), [(31, []), (32, [32]), (64, [64]), (95, [64]), (96, [64, 32])]
)
def test_a_rest_is_kept_from_half_a_window_on(length, expected, tokenizer):
    parts = cut(documents(["a" * length]), tokenizer, 10**9, WINDOW)
    assert [len(part) for part in parts] == expected


def test_texts_are_spread_evenly_over_all_documents(tokenizer):
    texts = [letter * 64 for letter in "abcdefghijklmnop"]

    def chosen(tokens: int) -> str:
        return "".join(part[0] for part in cut(documents(texts), tokenizer, tokens, WINDOW))

    assert chosen(10**9) == "abcdefghijklmnop"
    assert chosen(4 * WINDOW) == "aeim"
    assert chosen(3 * WINDOW + 63) == "afk"
    assert chosen(1) == "a"


@every
def test_texts_hold_no_half_characters(kind):
    text = "a\U0001f469\u200d\U0001f469é b " * 60
    parts = cut(documents([text]), base(kind), 10**9, WINDOW)
    assert parts
    assert all(part in text for part in parts)
    assert not any("\ufffd" in part for part in parts)


def test_special_tokens_around_a_text_are_not_counted():
    parts = cut(documents([" the" * 400]), base("llama3"), 10**9, WINDOW)
    assert [len(encode(base("llama3"), part)) for part in parts[:-1]] == [WINDOW] * 5
