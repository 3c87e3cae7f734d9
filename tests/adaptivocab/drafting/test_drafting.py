"""N-gram drafts under the generation engine: fewer forward passes, and nothing of the text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from tests.conftest import SHAPES, random_inputs, tiny
from trimtab.adaptivocab.drafting.drafter import NGramDrafter
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.generation import Completion, Engine, EngineStats, Finish, Sampling
from trimtab.models.random import byte_tokenizer

BASE = 320
NEW = 24
PROMPTS = random_inputs(3, 12).tolist()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)


def model_of(name: str = "tiny-llama") -> PreTrainedModel:
    """Return a tiny model whose texts have no end."""
    model = tiny(name).model
    model.generation_config.eos_token_id = None
    return model


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    drafter: NGramDrafter | None = None,
    *,
    slots: int = 1,
    **options: Any,
) -> tuple[list[Completion], EngineStats]:
    with Engine(model, TOKENIZER, slots=slots, max_len=256, drafter=drafter) as engine:
        completions = engine.generate(prompts, **{"max_new_tokens": NEW, **options})
        assert engine.kv.stats().live == 0
        return completions, engine.stats


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [one.tokens for one in completions]


def learned(texts: Sequence[Sequence[int]]) -> NGramDrafter:
    """Return a drafter that knows these texts, and twins in which every fifth token differs.

    What it proposes is then sometimes right and sometimes wrong.
    """
    twins = [[t if n % 5 else (t + 1) % 256 for n, t in enumerate(text)] for text in texts]
    known = [*map(list, texts), *twins]
    ngrams = {
        tuple(text[n : n + size])
        for text in known
        for size in (2, 3)
        for n in range(len(text) - size + 1)
    }
    return NGramDrafter.count(NGrams(BASE, tuple(sorted(ngrams))), known)


def drafter_for(completions: list[Completion]) -> NGramDrafter:
    return learned([prompt + one.tokens for prompt, one in zip(PROMPTS, completions, strict=True)])


def certain(*chain: int) -> NGramDrafter:
    """Return a drafter that always proposes the rest of the chain after any token of it."""
    guesses = {(before,): (after, 1.0) for before, after in itertools.pairwise(chain)}
    return NGramDrafter(guesses, context=1, threshold=0.5, longest=len(chain))


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_is_the_same_in_fewer_forward_passes(name):
    model = model_of(name)
    passes, steps, generated, proposed, accepted = [], 0, 0, 0, 0
    # A random model often repeats a token for ever, and nothing is to be drafted then.
    for processors in (None, lambda _: LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])):
        plain, _ = generate(model, PROMPTS, logits_processors=processors)
        hook = model.register_forward_hook(lambda *_: passes.append(1))
        found, stats = generate(model, PROMPTS, drafter_for(plain), logits_processors=processors)
        hook.remove()
        assert tokens_of(found) == tokens_of(plain)
        assert [one.text for one in found] == [one.text for one in plain]
        steps += sum(one.steps for one in found)
        generated += sum(len(one.tokens) for one in found)
        proposed, accepted = proposed + stats.proposed, accepted + stats.accepted
    assert 0 < accepted < proposed
    assert steps == len(passes)
    assert steps + accepted == generated == 2 * 3 * NEW
    assert steps < 0.7 * generated


EVEN = list(range(0, 256, 2))


@pytest.mark.parametrize(
    "processor",
    [
        RepetitionPenaltyLogitsProcessor(1.3),
        NoRepeatNGramLogitsProcessor(3),
        SuppressTokensLogitsProcessor([10, 11, 12]),
        MinNewTokensLengthLogitsProcessor(12, 20, EVEN),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_logits_processors_hold(processor):
    model = model_of("tiny-phi3")
    if isinstance(processor, MinNewTokensLengthLogitsProcessor):
        model.generation_config.eos_token_id = EVEN
    options = {"logits_processors": lambda _: LogitsProcessorList([processor])}
    plain, _ = generate(model, PROMPTS, **options)
    found, stats = generate(model, PROMPTS, drafter_for(plain), **options)
    assert tokens_of(found) == tokens_of(plain)
    assert stats.accepted > 0


@pytest.mark.parametrize("new", [1, 2, 3, 5])
def test_a_draft_leaves_room_for_the_token_after_it(new):
    model = model_of("tiny-phi3")
    plain, _ = generate(model, PROMPTS)
    found, stats = generate(model, PROMPTS, drafter_for(plain), max_new_tokens=new)
    assert tokens_of(found) == [one.tokens[:new] for one in plain]
    assert {one.finish for one in found} == {Finish.length}
    # The first token comes with the prompt, and the last is never drafted.
    assert stats.proposed <= 3 * max(new - 2, 0)
    assert bool(stats.accepted) == (new > 2)


def test_an_end_of_text_within_a_draft_ends_the_text():
    model = model_of("tiny-phi3")
    (plain,), _ = generate(model, PROMPTS[:1])
    drafter = learned([PROMPTS[0] + plain.tokens])
    accepted = 0
    for end in range(1, 8):
        model.generation_config.eos_token_id = plain.tokens[end]
        (found,), stats = generate(model, PROMPTS[:1], drafter)
        first = plain.tokens.index(plain.tokens[end])
        assert found.tokens == plain.tokens[: first + 1]
        assert found.finish is Finish.stop
        accepted += stats.accepted
    assert accepted > 0


@pytest.mark.parametrize("kind", ["bos", "eos", "pad"])
def test_special_tokens_in_a_draft_change_nothing(kind):
    """They are the model's to choose, as any token is: here it does not choose them."""
    model = tiny().model
    special = getattr(model.generation_config, f"{kind}_token_id")
    (plain,), _ = generate(model, PROMPTS[:1], max_new_tokens=6)
    assert special not in plain.tokens
    for chain in ((plain.tokens[0], special), (*plain.tokens[:2], special, *plain.tokens[2:])):
        unique = list(dict.fromkeys(chain))
        (found,), _ = generate(model, PROMPTS[:1], certain(*unique), max_new_tokens=6)
        assert (found.tokens, found.finish) == (plain.tokens, Finish.length)


def test_a_stop_string_within_a_draft_ends_the_text():
    model = model_of("tiny-phi3")
    (plain,), _ = generate(model, PROMPTS[:1])
    texts = [TOKENIZER.decode(token, skip_special_tokens=True) for token in plain.tokens]
    ends = [n for n in range(1, 20) if texts[n].isascii() and texts[n].isprintable() and texts[n]]
    assert len(ends) > 3
    drafter = certain(*dict.fromkeys([PROMPTS[0][-1], *plain.tokens]))
    accepted = 0
    for end in ends:
        (found,), stats = generate(model, PROMPTS[:1], drafter, stop=[texts[end]])
        first = plain.tokens.index(plain.tokens[end])
        assert found.tokens == plain.tokens[: first + 1]
        assert found.text == TOKENIZER.decode(plain.tokens[:first], skip_special_tokens=True)
        assert found.finish is Finish.stop_string
        accepted += stats.accepted
    assert accepted > 0


def test_every_token_is_handed_out_once():
    model = model_of()
    (plain,), _ = generate(model, PROMPTS[:1])
    drafter, handed = learned([PROMPTS[0] + plain.tokens]), []
    (found,), stats = generate(
        model, PROMPTS[:1], drafter, on_token=lambda _, token, text: handed.append((token, text))
    )
    assert stats.accepted > 0
    assert [token for token, _ in handed] == found.tokens == plain.tokens
    assert "".join(text for _, text in handed) == found.text


def test_texts_side_by_side_are_drafted_once_one_is_left():
    model = model_of()
    plain, _ = generate(model, PROMPTS)
    lengths = [NEW, 8, 8]
    found, stats = generate(model, PROMPTS, drafter_for(plain), slots=3, max_new_tokens=lengths)
    assert tokens_of(found) == [
        one.tokens[:length] for one, length in zip(plain, lengths, strict=True)
    ]
    assert stats.accepted > 0
    assert found[0].steps + stats.accepted == NEW
    assert [one.steps for one in found[1:]] == [8, 8]


def test_the_drafter_is_shown_the_end_of_the_text():
    model = model_of()
    (plain,), _ = generate(model, PROMPTS[:1])
    drafter, text = learned([PROMPTS[0] + plain.tokens]), PROMPTS[0] + plain.tokens
    shown: list[list[int]] = []

    class Spy:
        context = drafter.context

        def propose(self, ids: Sequence[int]) -> list[int]:
            shown.append(list(ids))
            return drafter.propose(ids)

    (found,), _ = generate(model, PROMPTS[:1], Spy())
    assert found.tokens == plain.tokens
    ends = [text[end - drafter.context : end] for end in range(len(PROMPTS[0]) + 1, len(text))]
    assert shown[0] == ends[0]
    assert all(ids in ends for ids in shown)


def test_steps_are_those_of_a_generation_of_the_text():
    model = model_of()
    words = random_inputs(12, 3).tolist()
    choice = random_inputs(90).tolist()
    text = [300, *(token for n in choice for token in words[n % 12])]
    drafter = learned([text[150:]])

    def force(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, text[input_ids.shape[1]]] = 0
        return forced

    (found,), stats = generate(
        model, [text[:1]], drafter, max_new_tokens=149,
        logits_processors=lambda _: LogitsProcessorList([force]),
    )  # fmt: skip
    assert found.tokens == text[1:150]
    assert drafter.propose(text[:1]) == []  # so that the prompt's pass is a step without a draft
    assert found.steps == drafter.steps(text[:150]) - 1
    assert found.steps < 110
    assert 0 < stats.accepted < stats.proposed
    assert drafter.steps([]) == 0


# Sampling: all texts of three tokens out of two each, against their exact probabilities.

SAMPLES = 400
TEMPERATURE, TOP_K = 0.7, 2


def outcomes(model: PreTrainedModel, temperature: float) -> dict[tuple[int, ...], float]:
    """Return the exact probability of every text of three tokens after the first prompt."""
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for text, probability in exact.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*PROMPTS[0], *text]])).logits[0, -1]
            scores, tokens = (logits.double() / temperature).topk(TOP_K)
            for token, share in zip(tokens.tolist(), scores.softmax(-1).tolist(), strict=True):
                longer[*text, token] = probability * share
        exact = longer
    return exact


def test_sampling_keeps_its_distribution():
    model = model_of("tiny-phi3")
    exact = outcomes(model, TEMPERATURE)
    assert min(exact.values()) * SAMPLES > 5
    likely = {text[0]: text[1] for text in sorted(exact, key=exact.__getitem__)}
    guesses = {(first,): (second, 1.0) for first, second in likely.items()}
    drafter = NGramDrafter(guesses, context=1, threshold=0.5, longest=1)
    found, stats = generate(
        model, PROMPTS[:1] * SAMPLES, drafter, max_new_tokens=3,
        sampling=Sampling(temperature=TEMPERATURE, top_k=TOP_K),
    )  # fmt: skip
    counts = [tokens_of(found).count(list(text)) for text in exact]
    assert sum(counts) == SAMPLES
    assert 0.2 * SAMPLES < stats.accepted < 0.8 * SAMPLES

    def agreement(probabilities: dict[tuple[int, ...], float]) -> float:
        return chisquare(counts, np.array([probabilities[text] for text in exact]) * SAMPLES).pvalue

    assert agreement(exact) > 1e-3
    # As if every draft were accepted.
    certainly = {text: (likely[text[0]] == text[1]) + 1e-3 for text in exact}
    total = sum(certainly.values())
    assert agreement({text: p / total for text, p in certainly.items()}) < 1e-9


def test_a_seed_draws_the_same_text_with_drafts():
    model = model_of("tiny-phi3")
    sampling = Sampling(temperature=0.8, seed=2)
    plain, _ = generate(model, PROMPTS, sampling=sampling)
    found, stats = generate(model, PROMPTS, drafter_for(plain), sampling=sampling)
    assert tokens_of(found) == tokens_of(plain)
    assert stats.accepted > 0
