"""The requests of scenario *serving*: their lengths, and the text they are cut from."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trimtab.config import ServingConfig
from trimtab.corpora import Document
from trimtab.corpus import encode
from trimtab.errors import TrimtabError
from trimtab.evaluation.requests import Length, requests, spread
from trimtab.evaluation.trace import read_trace
from trimtab.models.random import byte_tokenizer

BYTES = byte_tokenizer()
DOCUMENTS = [Document(name, name * size) for name, size in (("a", 40), ("b", 90), ("ü", 60))]
RANGES = ServingConfig(prompt_bytes=[32, 384], new_tokens=[16, 96])


@pytest.mark.parametrize("count", [2, 3, 9])
def test_lengths_reach_from_the_least_to_the_most_with_constant_ratios(count):
    lengths = spread(RANGES, count, seed=0)
    sizes = sorted(one.prompt_bytes for one in lengths)
    news = sorted(one.new_tokens for one in lengths)
    assert (sizes[0], sizes[-1], news[0], news[-1]) == (32, 384, 16, 96)
    ratios = [second / first for first, second in pairwise(sizes)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.05)
    assert lengths == spread(RANGES, count, seed=0)
    assert count < 9 or lengths != spread(RANGES, count, seed=1)


def test_a_request_is_as_long_as_asked_for_and_goes_on_as_its_document_does():
    lengths = [Length(7, prompt_bytes=20), Length(5, prompt_tokens=11), Length(4, prompt_bytes=9)]
    first, second, third = requests(DOCUMENTS, BYTES, lengths, "x")
    assert (first.document, second.document, third.document) == ("a", "b", "ü")
    assert (first.text, first.continuation) == ("a" * 20, "a" * 7)
    assert (second.text, second.continuation) == ("b" * 11, "b" * 5)
    assert len(third.text.encode()) == 8  # a character is not cut
    assert len(encode(BYTES, third.continuation)) == 4


def test_stretches_follow_each_other_and_a_used_up_document_begins_again():
    document = Document("d", "".join(map(chr, range(32, 92))))
    found = requests([document], BYTES, [Length(5, prompt_bytes=20)] * 3, "x")
    assert [one.text[0] for one in found] == [" ", chr(32 + 25), " "]


def test_where_no_document_is_long_enough_the_length_is_named():
    with pytest.raises(TrimtabError, match="^a setting: .* a prompt of 200 bytes and 5 tokens"):
        requests(DOCUMENTS, BYTES, [Length(5, prompt_bytes=200)], "a setting")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trace.jsonl", '{"prompt_tokens": 12, "new_tokens": 3}\n\n{"new_tokens": 4, '
         '"prompt_tokens": 5, "at": 0.5}\n'),
        ("trace.CSV", "at, prompt_tokens ,new_tokens\n0,12,3\n0.5, 5.0,4.0\n"),
        ("t.jsonl", '{"prompt_tokens": 12, "new_tokens": 3, "text": "a\u2028b"}\r\n'
         '{"prompt_tokens": 5, "new_tokens": 4, "text": "\x85"}'),
        ("t.csv", 'prompt_tokens,new_tokens,text\n12,3,"a\n7,8"\n5,4,a\u20289,9\x0c1,6\n'),
    ],
)  # fmt: skip
def test_a_trace_gives_the_lengths_of_its_lines(tmp_path, name, text):
    (tmp_path / name).write_text(text, "utf-8", newline="")
    found = read_trace(str(tmp_path / name))
    assert found == [Length(3, prompt_tokens=12), Length(4, prompt_tokens=5)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"prompt_tokens": 1, "new_tokens": 2}\n[]\n', "t.jsonl:2: expected prompt_t"),
        ("t.jsonl", '{"prompt_tokens": 1, "new_tokens": 1}', "t.jsonl:1: .* of at least 2"),
        ("t.jsonl", '{"prompt_tokens": 1.5, "new_tokens": 3}', "t.jsonl:1: .* whole numbers"),
        ("t.jsonl", "prompt_tokens", "t.jsonl:1: no JSON"),
        ("t.jsonl", "[" * 99999, "t.jsonl:1: no JSON"),
        ("t.csv", "prompt_tokens,new_tokens\n1,2\n1\n", "t.csv:3: expected prompt_tokens"),
        ("t.csv", "prompt_tokens, new\n1,2\n", "t.csv:1: has no new_tokens; it has: prompt_to"),
        ("t.jsonl", '{"a": 1}', "t.jsonl:1: has no prompt_tokens and no new_tokens; it has: a"),
        ("t.tsv", "", r"serving.trace=.*t.tsv: expected a name that ends in .jsonl or .csv"),
        ("t.csv", "prompt_tokens,new_tokens\n", "holds no line with prompt_tokens and new_tokens"),
    ],
)
def test_a_bad_line_of_a_trace_is_refused_by_its_number(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(TrimtabError, match=message):
        read_trace(str(tmp_path / name))
