import copy
import math

import pytest
import torch
from transformers import LlamaConfig

from tests.adaptivocab.tokenizers import base
from tests.conftest import tiny
from trimtab.config import MeasureConfig
from trimtab.corpus import encode
from trimtab.errors import MisfitError, TrimtabError
from trimtab.evaluation.generators import TransformersGenerator
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.greedy import common_prefix
from trimtab.evaluation.scoring import divergence, score
from trimtab.evaluation.workload import Window

KNOWN = {"known_weights": True, "changes_vocabulary": False, "paired": True}
WINDOW = Window("d", "some context, ", "and the text that is scored: ñ 🤖")


def scored(loaded, window=WINDOW, newest=None):
    generator = TransformersGenerator(loaded.model, loaded.tokenizer)
    return score(generator.logits, loaded.tokenizer, window, newest=newest)


def test_a_uniform_model_needs_the_bits_of_its_vocabulary():
    loaded = tiny("tiny-qwen3")
    torch.nn.init.zeros_(loaded.model.lm_head.weight)
    found = scored(loaded)
    size = len(WINDOW.text.encode())
    assert (found.tokens, found.size) == (size, size)
    assert found.bits == pytest.approx(size * math.log2(320))


def test_the_score_is_the_sum_of_the_step_by_step_probabilities(tiny_llama):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(WINDOW.context)["input_ids"]]
    expected = 0.0
    for token in tokenizer(WINDOW.text)["input_ids"]:
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        expected -= float(logits.log_softmax(-1)[token])
        ids.append(token)
    assert scored(tiny_llama).nats == pytest.approx(expected, rel=1e-5)


def test_divergence_is_zero_for_a_copy_and_what_the_definition_says_otherwise():
    first, second = (tiny("tiny-llama", seed=seed) for seed in (1, 2))
    scores = [scored(first), scored(second)]
    assert divergence(scores[0], scores[0]) == 0
    p, q = (found.log_probs.double() for found in scores)
    expected = (p.exp() * (p - q)).sum().item()
    assert expected > 0
    assert divergence(*scores) == pytest.approx(expected, rel=1e-4)


def test_the_context_can_be_read_from_its_newest_tokens_alone(tiny_llama):
    found = scored(tiny_llama, newest=7)
    cut = Window("d", WINDOW.context[-7:], WINDOW.text)
    assert found.context_tokens == 7
    assert found.nats == scored(tiny_llama, cut).nats
    assert scored(tiny_llama, newest=0).context_tokens == 0
    more = scored(tiny_llama, newest=len(WINDOW.context) + 3)
    assert (more.context_tokens, more.nats) == (len(WINDOW.context), scored(tiny_llama).nats)


def test_a_first_token_that_nothing_comes_before_is_refused(tiny_llama):
    tokenizer = copy.deepcopy(tiny_llama.tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    found = score(TransformersGenerator(tiny_llama.model, tokenizer).logits, tokenizer, WINDOW)
    assert found.tokens == found.size
    with pytest.raises(TrimtabError, match="nothing comes before .* raise quality.context_bytes"):
        score(
            TransformersGenerator(tiny_llama.model, tokenizer).logits,
            tokenizer,
            Window("d", "", WINDOW.text),
        )


@pytest.mark.parametrize("newest", [None, 3, 100])
@pytest.mark.parametrize(
    ("context", "text"), [("<s>user\nHello there, ", "and more"), ("", "<s>user\nHello there")]
)
def test_a_window_that_begins_with_the_start_token_is_read_with_one(context, text, newest):
    tokenizer = base("llama3")
    read: list[list[int]] = []

    def predict(before: list[int], tokens: list[int]) -> torch.Tensor:
        read.append(before + tokens)
        return torch.zeros(len(tokens), len(tokenizer))

    chat = score(predict, tokenizer, Window("d", context, text), newest=newest)
    without = [part.removeprefix("<s>") for part in (context, text)]
    plain = score(predict, tokenizer, Window("d", *without), newest=newest)
    assert read[0] == read[1]
    assert read[0].count(tokenizer.bos_token_id) == 1
    assert (chat.tokens, chat.size, chat.context_tokens) == (
        plain.tokens, plain.size, plain.context_tokens
    )  # fmt: skip


def test_positions_are_counted_with_one_start_token():
    tokenizer = base("llama3")
    texts = [("<s>user\nHello ", "there")]
    tokens = sum(len(encode(tokenizer, part)) for part in texts[0])
    job = Job([], tokenizer, LlamaConfig(max_position_embeddings=tokens), MeasureConfig(), **KNOWN)
    job.require_positions(texts, "generation.prompt_bytes=16")
    with pytest.raises(MisfitError, match=f"a text has {tokens + 1} tokens"):
        job.require_positions([(*texts[0], "!")], "generation.prompt_bytes=16")


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [("abc", "abd", 2), ("abc", "abc", 3), ("abc", "ab", 2), ("", "x", 0)],
)
def test_common_prefix(first, second, length):
    assert common_prefix(first, second) == length
