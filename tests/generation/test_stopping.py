"""Text as it comes, and where it stops, against decoding everything at once."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.conftest import tiny
from tests.generation.models import TOKENIZER
from trimtab.generation.stopping import REPLACEMENT, Detokenizer, stop_tokens


def pieces_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer of pieces of a, b and c, some of them several letters long."""
    pieces = ["a", "b", "c", "ab", "ba", "bc", "abc", "cab", "aa"]
    model = models.WordLevel({piece: place for place, piece in enumerate(pieces)}, unk_token="a")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer that decodes as Llama 2's: spaces in pieces, the first dropped, bytes."""
    pieces = ["▁one", "▁two", "s", "▁", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken("<special>", special=True)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


PIECES, METASPACE = pieces_tokenizer(), metaspace_tokenizer()
SPECIAL = len(METASPACE) - 1


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def streamed(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[str]:
    stream = Detokenizer(tokenizer)
    deltas = [*(stream.push(token) for token in tokens), stream.close()]
    assert "".join(deltas) == stream.text
    return deltas


@given(st.text())
@example("a😀e\u0301é\ufffd")
def test_only_whole_characters_are_handed_out(text):
    tokens = TOKENIZER(text)["input_ids"]
    deltas = streamed(TOKENIZER, tokens)
    assert "".join(deltas) == text
    if REPLACEMENT not in text:
        # Each at its last byte, and nothing is left for the end.
        assert deltas[-1] == ""
        assert [len(delta) for delta in deltas if delta] == [1] * len(text)


@given(st.lists(st.integers(0, 258), max_size=40))
def test_bytes_that_are_no_text_come_out_as_when_decoded_at_once(tokens):
    deltas = streamed(TOKENIZER, tokens)
    assert "".join(deltas) == decode(TOKENIZER, tokens)
    assert not any(delta.endswith(REPLACEMENT) for delta in deltas[:-1])


@given(st.lists(st.sampled_from([*range(5), SPECIAL]), max_size=12))
@example([SPECIAL, 0, SPECIAL, SPECIAL, 1, 2])
def test_the_space_of_the_first_word_alone_is_dropped(tokens):
    assert "".join(streamed(METASPACE, tokens)) == decode(METASPACE, tokens)


def test_characters_of_byte_tokens_come_out_whole():
    byte = METASPACE.convert_tokens_to_ids
    tokens = [0, *(byte(f"<0x{one:02X}>") for one in "\n😀".encode()), 1]
    deltas = streamed(METASPACE, tokens)
    assert deltas == ["one", "\n", "", "", "", "😀", " two", ""]


def brute(tokens: list[int], stops: list[str]) -> tuple[str, int] | None:
    """Return the text before the first complete stop string, and the tokens it took."""
    for count in range(1, len(tokens) + 1):
        text = decode(PIECES, tokens[:count])
        starts = [text.index(stop) for stop in stops if stop in text]
        if starts:
            return text[: min(starts)], count
    return None


@given(
    tokens=st.lists(st.integers(0, 8), max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
@example(tokens=[6], stops=["b", "abc"])
@example(tokens=[0, 0, 1], stops=["ab"])
@example(tokens=[3, 3, 2], stops=["ababc", "b"])
def test_stop_strings_are_found_as_by_brute_force(tokens, stops):
    stream = Detokenizer(PIECES, stops)
    expected = brute(tokens, stops)
    for count, token in enumerate(tokens, 1):
        stream.push(token)
        assert stream.stopped == (expected is not None and count == expected[1])
        if stream.stopped:
            break
        # What is held back is what a stop string may begin with, and no more.
        text = decode(PIECES, tokens[:count])
        begun = max(
            (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        assert stream.text == text[: len(text) - begun]
    stream.close()
    assert stream.text == (decode(PIECES, tokens) if expected is None else expected[0])


def test_text_that_ends_behind_a_stop_string_within_a_token():
    stream = Detokenizer(PIECES, ["b"])
    assert stream.push(7) == "ca"
    assert stream.stopped
    assert stream.close() == ""


def test_a_stop_string_of_a_character_in_pieces():
    stream = Detokenizer(TOKENIZER, ["é"])
    deltas = [stream.push(token) for token in TOKENIZER("aé")["input_ids"]]
    assert (deltas, stream.stopped) == (["a", "", ""], True)


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, {257}), (3, {3, 257}), ([3, 4], {3, 4, 257})]
)
def test_stop_tokens_are_the_models_and_the_tokenizers(configured, expected):
    loaded = tiny()
    loaded.model.generation_config = GenerationConfig(eos_token_id=configured)
    assert loaded.tokenizer.eos_token_id == 257
    assert stop_tokens(loaded.model, loaded.tokenizer) == expected
