"""Text cut into windows, at bytes and at tokens."""

import copy
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adaptivocab.tokenizers import DOCUMENTS, EVERY, base
from trimtab.corpus import Document, encode
from trimtab.errors import TrimtabError
from trimtab.windows import byte_windows, evenly, split_at_byte, text_windows, token_windows

WINDOW = 64
LETTERS = [text for text in DOCUMENTS if text.isascii()]
CHARACTERS = "aä€\U0001f469"  # of one byte to four


@given(st.text(max_size=200) | st.text(CHARACTERS, max_size=200), st.integers(4, 40))
def test_byte_windows_follow_each_other_and_are_cut_at_characters(text, size):
    windows = list(byte_windows(text, size))
    assert text.startswith("".join(windows))
    lengths = [len(window.encode()) for window in windows]
    assert all(size - 3 <= length <= size for length in lengths[:-1])
    assert all(size // 2 <= length <= size for length in lengths[-1:])
    rest = text.removeprefix("".join(windows))
    assert len(rest.encode()) < size // 2


@given(st.text(CHARACTERS, max_size=40), st.integers(4, 16))
def test_a_byte_window_has_no_room_for_the_next_character(text, size):
    windows = list(byte_windows(text, size))
    for one, after in pairwise(windows):
        assert len((one + after[0]).encode()) > size


@given(st.text(CHARACTERS, max_size=40), st.integers(0, 50))
def test_a_text_is_split_before_a_character_that_straddles_the_byte(text, size):
    head, rest = split_at_byte(text, size)
    assert head + rest == text
    assert len(head.encode()) <= size
    assert not rest or len((head + rest[0]).encode()) > size


def test_windows_of_a_long_document_take_time_in_proportion_to_it():
    """Eight megabytes: a cut that copied what is left would take minutes."""
    text = "eight by" * 2**20
    started = time.process_time()
    windows = list(byte_windows(text, 64))
    assert time.process_time() - started < 10
    assert len(windows) == 2**17
    assert "".join(windows) == text


def test_windows_too_short_for_a_character_are_refused():
    with pytest.raises(ValueError, match="size=3: a character takes up to 4 bytes"):
        list(byte_windows("text", 3))


@given(st.lists(st.integers(), max_size=30), st.data())
def test_items_are_spread_evenly(items, data):
    count = data.draw(st.integers(0, len(items)))
    places = evenly(range(len(items)), count)
    assert len(places) == count
    assert places == sorted(set(places))
    assert not count or places[0] == 0
    gaps = {after - before for before, after in pairwise([*places, len(items)])}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert evenly(items, count) == [items[place] for place in places]


def test_token_windows_are_whole_disjoint_and_spread_over_the_text(tokenizer):
    documents = [Document("a", "abcdefghij" * 10), Document("b", "0123456789" * 10)]
    windows = token_windows(documents, tokenizer, count=4, length=8)
    assert windows.shape == (4, 8)
    assert windows[:, 0].tolist() == [tokenizer.bos_token_id] * 4
    texts = [tokenizer.decode(row[1:]) for row in windows]
    assert texts[0] == "abcdefg"
    assert texts[-1].isdigit()
    everything = token_windows(documents, tokenizer, count=28, length=8)[:, 1:].flatten()
    joined = tokenizer(documents[0].text)["input_ids"] + [tokenizer.eos_token_id]
    assert everything[: len(joined)].tolist() == joined


CHAT = "<s>user\n"  # as a chat template writes it, with the start token


def test_a_document_that_begins_with_the_start_token_is_read_with_one():
    tokenizer = base("llama3")
    plain, chat = documents([DOCUMENTS[0]]), documents([CHAT + DOCUMENTS[0]])
    (window,) = token_windows(chat, tokenizer, count=1, length=8).tolist()
    assert window[:1] + encode(tokenizer, CHAT)[1:] == window[:-4]
    assert tokenizer.decode(window).startswith(CHAT)
    both = [*plain, *chat]
    joined = tokenizer.decode(token_windows(both, tokenizer, count=1, length=400, fewer=True)[0])
    assert joined.count("<s>") == 1
    parts = text_windows(chat, tokenizer, 10**9, WINDOW)
    assert parts[0].startswith(CHAT.removeprefix("<s>"))
    assert text_windows(documents(["<s>" + DOCUMENTS[0]]), tokenizer, 10**9, WINDOW) == (
        text_windows(plain, tokenizer, 10**9, WINDOW)
    )


def test_windows_of_a_tokenizer_without_a_start_token_are_text_alone(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = plain.eos_token = None
    windows = token_windows([Document("a", "abcdefgh" * 4)], plain, count=4, length=8)
    assert [plain.decode(row) for row in windows] == ["abcdefgh"] * 4


def test_too_little_text_is_an_error_that_says_how_much_there_is(tokenizer):
    with pytest.raises(
        TrimtabError,
        match="3 windows of 8 tokens are asked for and the text holds 2 of them, in 20 tokens: ",
    ):
        token_windows([Document("a", "x" * 19)], tokenizer, count=3, length=8)


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(number), text) for number, text in enumerate(texts)]


def test_text_windows_are_of_so_many_tokens_and_follow_each_other():
    for text in LETTERS[:4]:
        parts = text_windows(documents([text]), base("gpt2"), 10**9, WINDOW)
        assert text.startswith("".join(parts))
        lengths = [len(encode(base("gpt2"), part)) for part in parts]
        assert lengths[:-1] == pytest.approx([WINDOW] * (len(parts) - 1), abs=2)  # cuts split words
        missing = len(encode(base("gpt2"), text.removeprefix("".join(parts))))
        assert missing < WINDOW // 2


@pytest.mark.parametrize(
    ("length", "expected"), [(31, []), (32, [32]), (64, [64]), (95, [64]), (96, [64, 32])]
)
def test_the_rest_of_a_text_is_kept_from_half_a_window_on(length, expected, tokenizer):
    parts = text_windows(documents(["a" * length]), tokenizer, 10**9, WINDOW)
    assert [len(part) for part in parts] == expected


def test_text_windows_are_spread_evenly_over_all_documents(tokenizer):
    texts = [letter * 64 for letter in "abcdefghijklmnop"]

    def chosen(tokens: int) -> str:
        return "".join(
            part[0] for part in text_windows(documents(texts), tokenizer, tokens, WINDOW)
        )

    assert chosen(10**9) == "abcdefghijklmnop"
    assert chosen(4 * WINDOW) == "aeim"
    assert chosen(3 * WINDOW + 63) == "afk"
    assert chosen(1) == "a"


@pytest.mark.parametrize("kind", EVERY)
def test_text_windows_hold_no_half_characters(kind):
    text = "a\U0001f469\u200d\U0001f469é b " * 60
    parts = text_windows(documents([text]), base(kind), 10**9, WINDOW)
    assert parts
    assert all(part in text for part in parts)
    assert not any("\ufffd" in part for part in parts)


def test_special_tokens_around_a_text_are_not_counted():
    parts = text_windows(documents([" the" * 400]), base("llama3"), 10**9, WINDOW)
    assert [len(encode(base("llama3"), part)) for part in parts[:-1]] == [WINDOW] * 5


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("length", [8, WINDOW])
def test_no_text_has_more_tokens_by_itself_than_it_was_cut_to(kind, length):
    texts = [*DOCUMENTS[:2], CHARACTERS * 100, " été\u0301" * 100]
    parts = text_windows(documents(texts), base(kind), 10**9, length)
    assert len(parts) > 4 * len(texts)
    assert max(len(encode(base(kind), part)) for part in parts) <= length
