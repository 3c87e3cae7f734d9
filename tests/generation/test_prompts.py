"""Prompts in every form that callers have them in."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import datasets
import pandas
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerFast

import trimtab
from tests.generation.models import TOKENIZER, engine_for, model_of, prompts_of
from trimtab.errors import TrimtabError
from trimtab.generation.prompts import as_batch, prompt_tokens, token_ids

TABLE = pandas.DataFrame({"text": ["one", "two"]})
NUMBERED = pandas.DataFrame([[5, 6], [7, 8]])  # its columns are named 0 and 1
TEXTS = ["Hello", "a longer text", "x"]
IDS = [TOKENIZER(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def padding() -> PreTrainedTokenizerFast:
    """Return a tokenizer that can pad."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_what_a_tokenizer_makes_of_several_texts_is_these_prompts(padding, side, tensors):
    batch = padding(TEXTS, padding=True, padding_side=side, return_tensors=tensors)
    assert prompt_tokens(padding, batch) == IDS
    assert prompt_tokens(padding, TOKENIZER(TEXTS)) == IDS


def test_every_form_generates_the_same_texts(padding):
    forms = [
        TEXTS,
        IDS,
        tuple(torch.tensor(ids) for ids in IDS),
        padding(TEXTS, padding=True, return_tensors="pt"),
        [TEXTS[0], IDS[1], torch.tensor(IDS[2])],
        pandas.Series(TEXTS),
        pandas.Series(IDS),
        datasets.Dataset.from_dict({"text": TEXTS})["text"],
    ]
    with engine_for(model_of()) as engine:
        found = [[one.tokens for one in engine.generate(form, max_new_tokens=4)] for form in forms]
        assert len(engine.generate(torch.tensor([IDS[0]] * 2), max_new_tokens=1)) == 2
    assert found == [found[0]] * len(forms)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_padding_without_its_mask_is_no_text(padding, side, tensors):
    batch = padding(TEXTS, padding=True, padding_side=side, return_tensors=tensors)
    with pytest.raises(TrimtabError, match="prompts hold the padding token 0: give the tokenizer"):
        prompt_tokens(padding, batch["input_ids"])
    for row in (batch["input_ids"][0], batch["input_ids"][2]):
        for rows in ([row], [row, [5]], [row, "a text"]):
            with pytest.raises(TrimtabError, match="prompts hold the padding token 0: give the"):
                prompt_tokens(padding, rows)
    ending = copy.deepcopy(padding)
    ending.eos_token = ending.pad_token
    for rows in ([[0, 1], [2, 3]], torch.tensor([[0, 1], [0, 3]]), torch.tensor([[2], [3]])):
        assert prompt_tokens(ending, rows) == [[*map(int, row)] for row in rows]
    for rows in ([[0, 0, 1], [2, 3]], [[1, 0, 0, 2], [1, 2, 3, 4]], [[0, 0, 1]]):
        assert prompt_tokens(ending, rows) == rows
    for padded in (
        torch.tensor([[0, 1], [2, 3]]),
        torch.tensor([[0, 0, 1], [0, 0, 2]]),  # padded to a length that no text has
        [[0, 0, 1], [2, 3, 4]],
        [torch.tensor([1, 0, 0]), torch.tensor([2, 3, 4])],
        batch["input_ids"],
    ):
        with pytest.raises(TrimtabError, match="prompts hold the padding token 0: give the token"):
            prompt_tokens(ending, padded)


def test_a_text_that_begins_with_the_padding_token_is_a_text(padding):
    first = padding.pad_token + TEXTS[0]
    model = model_of()
    expected = [0, *IDS[0]]
    assert prompt_tokens(padding, [first, IDS[1]]) == [expected, IDS[1]]
    assert prompt_tokens(padding, as_batch([expected])) == [expected]
    found = []
    for stack in ([], [trimtab.VAttention()]):
        with trimtab.apply(model, padding, stack) as optimized:
            (completion,) = optimized.generate([first], max_new_tokens=3)
            found.append((completion.prompt_tokens, completion.tokens))
    assert found == [(len(expected), found[0][1])] * 2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            {"input_ids": IDS},
            "prompts is a dict: expected a list of texts or of lists of token ids",
        ),
        (BatchFeature({"input_ids": IDS}), "prompts is a BatchFeature"),
        ({"a", "b"}, "prompts is a set"),
        (b"ab", "prompts is a bytes"),
        (bytearray(b"ab"), "prompts is a bytearray"),
        (memoryview(b"ab"), "prompts is a memoryview"),
        (7, "prompts is a int"),
        (None, "prompts is a NoneType"),
        (SimpleNamespace(), "prompts is a SimpleNamespace"),
        (TOKENIZER("one"), "prompts is a BatchEncoding of one text: expected several"),
        (
            BatchEncoding({"input_ids": IDS}),
            "a BatchEncoding of input_ids: expected input_ids, and",
        ),
        (BatchEncoding({}), "prompts is a BatchEncoding of nothing: expected input_ids"),
        (
            BatchEncoding({"input_ids": [[1, 2]], "attention_mask": [[1]]}),
            "expected input_ids of integers and an attention_mask of the same shape",
        ),
        (TABLE, "prompts is a DataFrame: expected .*; of a table, give one column"),
        (datasets.Dataset.from_pandas(TABLE), "prompts is a Dataset: expected a list"),
        ([NUMBERED], r"^prompt .{1,60}: expected a text or token ids$"),
        ([{"input_ids": [1]}], "expected a text or token ids"),
        ([TOKENIZER("one")], "expected a text or token ids"),
        ([b"ab"], "expected a text or token ids"),
        ([[[1, 2]]], "expected a text or token ids"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(prompts, message):
    with pytest.raises(TrimtabError, match=message):
        prompt_tokens(TOKENIZER, prompts)


@pytest.fixture(scope="module")
def starting() -> PreTrainedTokenizerFast:
    """Return a tokenizer that begins every text with a token, and ends it with another."""
    backend = copy.deepcopy(TOKENIZER.backend_tokenizer)
    backend.add_special_tokens(["<bos>", "<eos>"])
    ids = [(name, backend.token_to_id(name)) for name in ("<bos>", "<eos>")]
    backend.post_processor = TemplateProcessing("<bos> $A <eos>", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>",
        chat_template="<bos>{% for m in messages %}{{ m.content }}{% endfor %}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "starts"),
    [("Hi", 1), ("<bos>Hi", 1), ("<bos><bos>Hi", 2), ("Hi<bos>", 2), ("<bos>", 1)],
)
def test_a_text_begins_as_often_as_it_says(starting, text, starts):
    ids = token_ids(starting, text)
    assert ids.count(starting.bos_token_id) == starts
    assert ids[0] == starting.bos_token_id
    assert ids[-1] == starting.eos_token_id
    assert starting.decode(ids[:-1]) == (text if text.startswith("<bos>") else f"<bos>{text}")


def test_a_chat_template_as_text_and_as_tokens_is_one_prompt(starting):
    chat = [{"role": "user", "content": "Hi"}]
    text = starting.apply_chat_template(chat, tokenize=False)
    batch = starting.apply_chat_template([chat], tokenize=True, return_dict=True)
    (ids,) = prompt_tokens(starting, batch)
    assert token_ids(starting, text)[:-1] == ids


@pytest.mark.parametrize("begins", ["<bos>", "<mask><bos>", "<bos><bos>"])
def test_what_a_tokenizer_puts_before_texts_need_not_be_its_bos_token(starting, begins):
    backend = copy.deepcopy(starting.backend_tokenizer)
    backend.add_special_tokens(["<mask>"])
    ids = [(name, backend.token_to_id(name)) for name in ("<mask>", "<bos>")]
    template = " ".join([*begins.replace(">", "> ").split(), "$A"])
    backend.post_processor = TemplateProcessing(template, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    once = token_ids(tokenizer, "Hi")
    assert tokenizer.decode(once) == f"{begins}Hi"
    assert token_ids(tokenizer, f"{begins}Hi") == once
    assert token_ids(tokenizer, f"{begins}{begins}Hi") == tokenizer(f"{begins}Hi")["input_ids"]


def test_a_text_longer_than_the_tokenizer_is_meant_for_is_told_of_by_the_model_alone(caplog):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.model_max_length = 2
    with caplog.at_level("WARNING", "transformers"):
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            assert len(token_ids(tokenizer, "abc")) > 2
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


def test_a_tokenizer_that_adds_no_token_loses_none():
    bos = copy.deepcopy(TOKENIZER)
    bos.bos_token = bos.convert_ids_to_tokens(prompts_of(1)[0][0])
    text = bos.bos_token * 2 + "x"
    assert token_ids(bos, text) == bos(text)["input_ids"]
