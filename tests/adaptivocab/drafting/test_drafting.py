"""Drafts under the generation engine: fewer forward passes, and nothing of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.capabilities import Drafter
from trimtab.generation import Completion, Engine, EngineStats, Finish, Sampling
from trimtab.models.random import byte_tokenizer

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
    drafter: Drafter | None = None,
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


def learned(texts: Sequence[Sequence[int]]) -> ContextDrafter:
    """Return a drafter that knows these texts, and twins in which every fifth token differs.

    What it proposes is then sometimes right and sometimes wrong.
    """
    twins = [[t if n % 5 else (t + 1) % 256 for n, t in enumerate(text)] for text in texts]
    return ContextDrafter.count([*map(list, texts), *twins])


def drafter_for(completions: list[Completion]) -> ContextDrafter:
    return learned([prompt + one.tokens for prompt, one in zip(PROMPTS, completions, strict=True)])


class Certain:
    """Always proposes the same tokens after a token; a drafter, and its sessions."""

    def __init__(self, after: Mapping[int, Sequence[int]], ids: Sequence[int] = ()) -> None:
        self.after, self.ids = after, list(ids)

    def start(self, ids: Sequence[int]) -> Certain:
        return Certain(self.after, ids)

    def accept(self, tokens: Sequence[int]) -> None:
        self.ids += tokens

    def propose(self, limit: int) -> list[tuple[int, float]]:
        return [(token, 1.0) for token in self.after.get(self.ids[-1], ())[:limit]]


def chained(*tokens: int) -> Certain:
    """Return a drafter that proposes the rest of a chain after any token of it."""
    return Certain({token: tokens[place + 1 :] for place, token in enumerate(tokens)})


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
    assert 0 < accepted <= proposed
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
        (found,), _ = generate(model, PROMPTS[:1], chained(*unique), max_new_tokens=6)
        assert (found.tokens, found.finish) == (plain.tokens, Finish.length)


def test_a_stop_string_within_a_draft_ends_the_text():
    model = model_of("tiny-phi3")
    (plain,), _ = generate(model, PROMPTS[:1])
    texts = [TOKENIZER.decode(token, skip_special_tokens=True) for token in plain.tokens]
    ends = [n for n in range(1, 20) if texts[n].isascii() and texts[n].isprintable() and texts[n]]
    assert len(ends) > 3
    drafter = chained(*dict.fromkeys([PROMPTS[0][-1], *plain.tokens]))
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


def test_texts_side_by_side_are_drafted_together():
    model, limits = model_of(), [NEW, 8, 8]
    plain, _ = generate(model, PROMPTS)
    expected = [one.tokens[:limit] for one, limit in zip(plain, limits, strict=True)]
    drafter = drafter_for(plain)
    found, stats = generate(model, PROMPTS, drafter, slots=3, max_new_tokens=limits)
    assert tokens_of(found) == expected
    assert stats.accepted > 0
    assert sum(one.steps for one in found) + stats.accepted == sum(limits)


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
    drafter = Certain({first: [second] for first, second in likely.items()})
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
