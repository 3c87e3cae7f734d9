"""Text token by token, and where it stops, compared with decoding everything at once."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import trimtab
from tests.conftest import tiny
from tests.generation.models import TOKENIZER
from trimtab import TrimtabError, VAttention
from trimtab.generation.stopping import (
    REPLACEMENT,
    Detokenizer,
    special_tokens,
    stop_tokens,
)


def letters_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer whose tokens are one or more of the letters a, b and c."""
    tokens = ["a", "b", "c", "ab", "ba", "bc", "abc", "cab", "aa"]
    model = models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="a")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer that decodes as Llama 2's: a leading space dropped, single bytes."""
    tokens = ["▁one", "▁two", "s", "▁", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({token: place for place, token in enumerate(tokens)}, [], byte_fallback=True)
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


LETTERS, METASPACE = letters_tokenizer(), metaspace_tokenizer()
SPECIAL = len(METASPACE) - 1
SPECIAL_TEXTS = TOKENIZER.all_special_tokens


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def piecewise(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    deltas = [*(detokenizer.push(token) for token in tokens), detokenizer.close()]
    assert "".join(deltas) == detokenizer.text
    return deltas


@given(st.text().filter(lambda text: not any(one in text for one in SPECIAL_TEXTS)))
@example("a😀e\u0301é\ufffd")
def test_only_whole_characters_are_handed_out(text):
    tokens = TOKENIZER(text)["input_ids"]
    deltas = piecewise(TOKENIZER, tokens)
    assert "".join(deltas) == text
    if REPLACEMENT not in text:
        # Each comes with its last byte, and nothing is left for the end.
        assert deltas[-1] == ""
        assert [len(delta) for delta in deltas if delta] == [1] * len(text)


@given(st.lists(st.integers(0, 258), max_size=40))
def test_invalid_bytes_come_out_as_when_decoded_at_once(tokens):
    deltas = piecewise(TOKENIZER, tokens)
    assert "".join(deltas) == decode(TOKENIZER, tokens)
    assert not any(delta.endswith(REPLACEMENT) for delta in deltas[:-1])


@given(st.lists(st.sampled_from([*range(5), SPECIAL]), max_size=12))
@example([SPECIAL, 0, SPECIAL, SPECIAL, 1, 2])
def test_only_the_space_of_the_first_word_is_dropped(tokens):
    assert "".join(piecewise(METASPACE, tokens)) == decode(METASPACE, tokens)


def test_characters_of_byte_tokens_come_out_whole():
    byte = METASPACE.convert_tokens_to_ids
    tokens = [0, *(byte(f"<0x{one:02X}>") for one in "\n😀".encode()), 1]
    deltas = piecewise(METASPACE, tokens)
    assert deltas == ["one", "\n", "", "", "", "😀", " two", ""]


def brute(tokens: list[int], stops: list[str]) -> tuple[str, int] | None:
    """Return the text before the first complete stop string, and how many tokens complete it."""
    for count in range(1, len(tokens) + 1):
        text = decode(LETTERS, tokens[:count])
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
    detokenizer = Detokenizer(LETTERS, stops)
    expected = brute(tokens, stops)
    for count, token in enumerate(tokens, 1):
        detokenizer.push(token)
        assert detokenizer.stopped == (expected is not None and count == expected[1])
        if detokenizer.stopped:
            break
        # Only what may begin a stop string is held back.
        text = decode(LETTERS, tokens[:count])
        begun = max(
            (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        assert detokenizer.text == text[: len(text) - begun]
    detokenizer.close()
    assert detokenizer.text == (decode(LETTERS, tokens) if expected is None else expected[0])


def test_a_special_token_among_the_stop_strings_ends_a_text():
    detokenizer = Detokenizer(METASPACE, ["neither", "<special>"])
    pieces = [detokenizer.push(token) for token in (0, 1, 1, SPECIAL)]
    assert (pieces[-1], detokenizer.text, detokenizer.stopped) == ("", "one two two", True)
    assert detokenizer.push(0) == detokenizer.close() == ""
    with pytest.raises(TrimtabError, match="stop='<special> one': holds the special token <spec"):
        Detokenizer(METASPACE, ["<special> one"])


def test_text_after_a_stop_string_in_the_same_token_is_dropped():
    detokenizer = Detokenizer(LETTERS, ["b"])
    assert detokenizer.push(7) == "ca"
    assert detokenizer.stopped
    assert detokenizer.close() == ""


def test_a_stop_string_of_one_character_in_two_tokens():
    detokenizer = Detokenizer(TOKENIZER, ["é"])
    deltas = [detokenizer.push(token) for token in TOKENIZER("aé")["input_ids"]]
    assert (deltas, detokenizer.stopped) == (["a", "", ""], True)


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, {257}), (3, {3, 257}), ([3, 4], {3, 4, 257}), (-1, {257})]
)
def test_stop_tokens_are_the_models_and_the_tokenizers(configured, expected):
    loaded = tiny()
    loaded.model.generation_config = GenerationConfig(eos_token_id=configured)
    assert loaded.tokenizer.eos_token_id == 257
    assert stop_tokens(loaded.model, loaded.tokenizer) == expected


@pytest.mark.parametrize("configured", ["</s>", [[3]], 3.5, True])
def test_a_stop_token_that_is_no_number_is_refused(configured):
    loaded = tiny()
    loaded.model.generation_config = GenerationConfig(eos_token_id=configured)
    for stack in ([], [VAttention()]):
        with (
            trimtab.apply(loaded.model, loaded.tokenizer, stack) as optimized,
            pytest.raises(TrimtabError, match="eos_token_id=.*: expected token ids"),
        ):
            optimized.generate(["a"], max_new_tokens=2)


def test_special_tokens_are_the_models_and_the_tokenizers():
    loaded = tiny()
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.pad_token_id) == (256, 258)
    loaded.model.config.bos_token_id = 5
    loaded.model.generation_config = GenerationConfig(eos_token_id=[3, 4], pad_token_id=6)
    found = special_tokens(loaded.model, loaded.tokenizer)
    assert found >= {3, 4, 5, 6, 256, 257, 258}
    assert found >= stop_tokens(loaded.model, loaded.tokenizer)
