"""Drafts change how many steps a text takes, and nothing about the text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import LogitsProcessorList

from tests.generation.models import TOKENIZER, engine_for, forcing, model_of, prompts_of
from tests.generation.toys import Guesses, ToyCache, ToyForward, batch_of, continued, request_of
from trimtab.errors import TrimtabError
from trimtab.generation import Finish, Sampling
from trimtab.generation.stats import EngineStats
from trimtab_kernels.decode_step import cpu

NEW = 20


class Proposer:
    """Proposes what `guess` makes of the true continuation of a text, one of `texts`."""

    def __init__(self, guess, *texts: list[int]) -> None:
        self.guess, self.texts = guess, texts

    def start(self, ids: Sequence[int]) -> Proposing:
        (text,) = (text for text in self.texts if text[: len(ids)] == list(ids))
        return Proposing(self.guess, text, len(ids))


class Proposing:
    def __init__(self, guess, text: list[int], place: int) -> None:
        self.guess, self.text, self.place = guess, text, place

    def accept(self, tokens: Sequence[int]) -> None:
        assert list(tokens) == self.text[self.place : self.place + len(tokens)]
        self.place += len(tokens)

    def propose(self, limit: int) -> list[tuple[int, float]]:
        return [(token, 0.9) for token in self.guess(self.text[self.place :])[:limit]]


def wrong(ahead: list[int]) -> list[int]:
    return [(token + 1) % 320 for token in ahead[:4]]


def mixed(ahead: list[int]) -> list[int]:
    chance = random.Random(len(ahead))
    return [token if chance.random() < 0.7 else 5 for token in ahead[:5]]


GUESSES = {
    "perfect": lambda ahead: ahead[:4],
    "longer than wanted": lambda ahead: [*ahead, 1, 2, 3],
    "wrong": wrong,
    "mixed": mixed,
    "none": lambda ahead: [],
}
# Accepted tokens, steps with a draft and steps without, for the tokens after the first.
EXPECTED = {
    "perfect": (15, 4, 0),
    "longer than wanted": (17, 2, 0),
    "wrong": (0, 18, 1),
    "none": (0, 0, 19),
}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=2)], ids=str)
@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("variant", ["llama", "gemma2", "mistral, window"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_text_is_the_same(device, variant, guess, sampling):
    model = torch.nn.Module.to(model_of(variant), device)
    (prompt,) = prompts_of(11)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=NEW, sampling=sampling)
    drafter = Proposer(GUESSES[guess], prompt + plain.tokens)
    with engine_for(model, drafter=drafter) as engine:
        (found,) = engine.generate([prompt], max_new_tokens=NEW, sampling=sampling)
        stats = engine.stats
    assert found.tokens == plain.tokens
    assert found.text == plain.text
    # Each step yields a token of its own besides those accepted; the prompt's yields one too.
    assert stats.verify_steps + stats.decode_steps + stats.accepted == len(plain.tokens) - 1
    assert found.steps == 1 + stats.verify_steps + stats.decode_steps
    assert bool(stats.proposed) == (guess != "none")
    if guess == "mixed":
        assert 0 < stats.accepted < stats.proposed
    else:
        steps = stats.verify_steps, stats.decode_steps
        assert (stats.accepted, *steps) == EXPECTED[guess]


def three_tokens(ids: Sequence[int]) -> Tensor:
    """Return the logits of three tokens; they depend on the last two ids."""
    return torch.tensor([[0.3, -0.4, 1.1], [1.2, 0.1, -0.8], [-0.5, 0.9, 0.2]])[ids[-1]] * (
        1 + 0.5 * ids[-2]
    )


class Likeliest:
    """Proposes the two likeliest next tokens of that model, the first of them mostly right."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)

    def start(self, ids: Sequence[int]) -> Likeliest:
        return Likeliest(ids)

    def accept(self, tokens: Sequence[int]) -> None:
        self.ids += tokens

    def propose(self, limit: int) -> list[tuple[int, float]]:
        ids = list(self.ids)
        for _ in range(limit):
            ids.append(int(three_tokens(ids).argmax()))
        return [(token, 0.5) for token in ids[len(self.ids) :][:2]]


@pytest.mark.parametrize("slots", [1, 3])
def test_sampling_with_drafts_keeps_the_distribution(slots):
    """Of four tokens: 81 texts, with their exact probabilities, alone and side by side."""
    prompt, new, draws = [0, 1], 4, 4000
    sampling = Sampling(temperature=0.7, seed=11)
    requests = [request_of(index, prompt, new, sampling) for index in range(draws)]
    stats = EngineStats()
    batch = batch_of(
        ToyForward(ToyCache(slots, 100), three_tokens),
        requests,
        8,
        drafter=Likeliest(),
        stats=stats,
    )
    counts = Counter(tuple(request.completion().tokens) for request in batch.run())
    assert 0.3 < stats.accepted / stats.proposed < 0.9

    texts = list(product(range(3), repeat=new))
    expected = []
    for text in texts:
        ids, probability = list(prompt), 1.0
        for token in text:
            probability *= float((three_tokens(ids) / sampling.temperature).softmax(-1)[token])
            ids.append(token)
        expected.append(probability * draws)
    order = np.argsort(expected)
    # Rare texts together: the test needs several of each kind.
    rare = [texts[place] for place in order if expected[place] < 5]
    kinds = [texts[place] for place in order if expected[place] >= 5]
    assert len(kinds) > 30
    found = [counts[text] for text in kinds] + [sum(counts[text] for text in rare)]
    wanted = [expected[texts.index(text)] for text in kinds]
    wanted.append(draws - sum(wanted))
    assert chisquare(found, wanted).pvalue > 1e-3


@pytest.mark.parametrize("finish", [Finish.stop, Finish.stop_string])
def test_a_draft_ends_with_the_text(finish):
    """A stop token or a stop string within a draft ends the text, and nothing follows it."""
    model = model_of()
    (prompt,) = prompts_of(11)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=NEW)
    end, stop, handed = plain.tokens[6], [], []
    if finish is Finish.stop:
        model.generation_config.eos_token_id = end
    else:
        stop = [TOKENIZER.decode([end])]
    drafter = Proposer(lambda ahead: ahead[:8], prompt + plain.tokens)
    with engine_for(model, drafter=drafter) as engine:
        (found,) = engine.generate(
            [prompt], max_new_tokens=NEW, stop=stop, on_token=lambda *call: handed.append(call[1])
        )
        assert found.finish is finish
        assert found.tokens == handed == plain.tokens[: plain.tokens.index(end) + 1]
        assert found.text == TOKENIZER.decode(found.tokens[:-1])
        stats = engine.stats
        if finish is Finish.stop:
            # The draft ends before the stop token, which the model chooses after it.
            assert stats.accepted == stats.proposed == len(found.tokens) - 2
        else:
            assert 0 < stats.accepted < stats.proposed
        assert stats.verify_steps == 1
        assert engine.kv.stats().live == 0


@pytest.mark.parametrize("size", range(1, 9))
def test_a_stop_string_of_several_tokens_ends_the_text_where_it_does_without_drafts(size):
    """Wherever drafts of that size cut the stop string: in one of them, or across two."""
    model, text = model_of(), "né 😀 STOP and on"
    prompt, ids = TOKENIZER("Hello")["input_ids"], TOKENIZER(text)["input_ids"]

    def run(drafter: Proposer | None) -> tuple[Any, list[tuple[int, int, str]], int]:
        calls: list[tuple[int, int, str]] = []
        with engine_for(model, drafter=drafter) as engine:
            (found,) = engine.generate(
                ["Hello"],
                max_new_tokens=len(ids),
                stop=["STOP"],
                on_token=lambda *call: calls.append(call),
                logits_processors=forcing(text),
            )
        return found, calls, engine.stats.accepted

    plain, expected, _ = run(None)
    found, calls, accepted = run(Proposer(lambda ahead: ahead[:size], prompt + ids))
    assert accepted > 0
    assert calls == expected
    assert (found.tokens, found.text, found.finish) == (plain.tokens, "né 😀 ", Finish.stop_string)


@pytest.mark.parametrize("source", ["generation config", "config", "tokenizer"])
@pytest.mark.parametrize("role", ["bos", "eos", "pad"])
def test_a_draft_ends_before_a_special_token(role, source):
    """Whatever is proposed, the model never gets a token that no text contains."""
    model, special = model_of(), 258
    fed: list[int] = []
    (prompt,) = prompts_of(11)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=NEW)
    assert special not in plain.tokens
    output = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer)
    if source == "tokenizer":
        setattr(output, f"{role}_token", output.convert_ids_to_tokens(special))
        assert getattr(output, f"{role}_token_id") == special
    else:
        config = model.config if source == "config" else model.generation_config
        setattr(config, f"{role}_token_id", special)
    drafter = Proposer(lambda ahead: [*ahead[:2], special, *ahead[2:4]], prompt + plain.tokens)
    handle = model.register_forward_pre_hook(
        lambda module, args, inputs: fed.extend(inputs["input_ids"].flatten().tolist()),
        with_kwargs=True,
    )
    with engine_for(model, drafter=drafter, output_tokenizer=output) as engine:
        (found,) = engine.generate([prompt], max_new_tokens=NEW)
        stats = engine.stats
    handle.remove()
    assert found.tokens == plain.tokens
    assert special not in fed
    assert stats.accepted == stats.proposed == 2 * stats.verify_steps > 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=5)], ids=str)
def test_logits_processors_see_the_same_ids_and_logits(sampling):
    model = model_of()
    (prompt,) = prompts_of(9)

    def run(drafter: Proposer | None) -> tuple[list[int], list[list[int]], Tensor]:
        seen, logits = [], []

        def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append(input_ids.tolist())
            logits.append(scores[0].clone())
            scores[:, input_ids[0, -3:]] -= 2.0  # the choice depends on the ids
            return scores

        with engine_for(model, drafter=drafter) as engine:
            (found,) = engine.generate(
                [prompt],
                max_new_tokens=NEW,
                sampling=sampling,
                logits_processors=lambda index: LogitsProcessorList([processor]),
            )
            assert drafter is None or 0 < engine.stats.accepted < engine.stats.proposed
        return found.tokens, seen, torch.stack(logits)

    tokens, seen, logits = run(None)
    assert seen == [[prompt + tokens[:place]] for place in range(NEW)]
    found = run(Proposer(mixed, prompt + tokens))
    assert found[:2] == (tokens, seen)
    torch.testing.assert_close(found[2], logits)


def test_the_modules_verify_one_text_at_a_time(monkeypatch):
    """So several texts go on undrafted until one is left."""
    monkeypatch.setattr(cpu, "unavailable", lambda *_: "for this test")
    model = model_of()
    prompts = prompts_of(6, 9)
    with engine_for(model) as engine:
        plain = engine.generate(prompts, max_new_tokens=[16, 6])
    drafter = Proposer(lambda ahead: ahead[:3], prompts[0] + plain[0].tokens)
    with engine_for(model, drafter=drafter, prefill_chunk=64) as engine:
        found = engine.generate(prompts, max_new_tokens=[16, 6])
        stats = engine.stats
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert stats.decode_steps == 5
    assert stats.verify_steps == 3  # of 15 tokens 5 are there, and a step yields 4
    assert found[0].steps == 1 + 5 + 3
    with engine_for(model, drafter=drafter, batch_invariant=True) as engine:
        assert engine.generate(prompts, max_new_tokens=[16, 6])[0].tokens == plain[0].tokens
        assert engine.stats.verify_steps == 0  # nothing shows when a text is alone


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=2)], ids=str)
@pytest.mark.parametrize("variant", ["llama", "gemma2", "gpt2"])
def test_an_executor_verifies_the_drafts_of_several_texts_together(variant, sampling):
    model, sizes = model_of(variant), (6, 9, 3, 11)
    prompts = prompts_of(*sizes)
    with engine_for(model) as engine:
        plain = engine.generate(prompts, max_new_tokens=NEW, sampling=sampling)
    texts = [prompt + one.tokens for prompt, one in zip(prompts, plain, strict=True)]
    with engine_for(model, drafter=Proposer(mixed, *texts), prefill_chunk=64) as engine:
        found = engine.generate(prompts, max_new_tokens=NEW, sampling=sampling)
        stats = engine.stats
        assert engine.kv.stats().live == 0
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert stats.decode_steps + stats.verify_steps < NEW
    assert 0 < stats.accepted < stats.proposed
    assert sum(one.steps for one in found) + stats.accepted == len(sizes) * NEW


def test_texts_side_by_side_are_preempted_and_stopped_as_without_drafts():
    model, prompts = model_of(), prompts_of(6, 9, 3, 11)
    with engine_for(model) as engine:
        whole = engine.generate(prompts, max_new_tokens=40)
        texts = [prompt + one.tokens for prompt, one in zip(prompts, whole, strict=True)]
        letters = {letter for one in whole for letter in one.text[8:] if letter.isprintable()}
        stop = sorted(letters - {letter for one in whole for letter in one.text[:8]})[:1]
        plain = engine.generate(prompts, max_new_tokens=40, stop=stop)
    with engine_for(model, drafter=Proposer(mixed, *texts), budget=4 * 6 * 4096) as engine:
        found = engine.generate(prompts, max_new_tokens=40, stop=stop)
        stats = engine.stats
    assert Finish.stop_string in {one.finish for one in plain}
    assert [(one.tokens, one.text, one.finish) for one in found] == [
        (one.tokens, one.text, one.finish) for one in plain
    ]
    assert stats.preemptions > 0
    assert stats.recomputed > stats.diverged == 0
    assert 0 < stats.accepted < stats.proposed


def test_a_draft_that_memory_has_no_room_for_is_dropped():
    def long_draft(ahead: list[int]) -> list[int]:
        """Guess right up to the stop token, of which 32 tokens lie ahead, and wrong from there."""
        return [*ahead[:-33], *[5] * 28]

    model = model_of()
    (prompt,) = prompts_of(28)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=36)
    model.generation_config.eos_token_id = plain.tokens[3]
    drafter = Proposer(long_draft, prompt + plain.tokens)
    with engine_for(model, drafter=drafter, budget=2 * 6 * 4096) as engine:
        other = engine.kv.acquire()
        engine.kv.ensure({other: 1})  # takes one of the two page rows
        (found,) = engine.generate([prompt], max_new_tokens=36)
        assert engine.stats.decode_steps == len(found.tokens) - 1
        engine.kv.release(other)
        (again,) = engine.generate([prompt], max_new_tokens=36)
        assert engine.stats.verify_steps == 1
    assert found.tokens == again.tokens == plain.tokens[:4]


def test_a_draft_leaves_room_for_the_token_after_it():
    """The longest draft of a text of 6 tokens has 4: the prompt yields one, and the step one."""
    cache, stats = ToyCache(1, 100), EngineStats()
    request = request_of(0, [1, 2, 3], 6)
    batch = batch_of(ToyForward(cache), [request], 8, drafter=Guesses(9, 0), stats=stats)
    assert [one.completion().tokens for one in batch.run()] == [continued([1, 2, 3], 6)]
    assert (stats.proposed, stats.accepted, stats.verify_steps) == (4, 4, 1)


def test_given_texts_are_what_drafts_are_verified_against():
    model, prompts = model_of(), prompts_of(5, 7)
    texts = prompts_of(9, 12)
    texts = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    given = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
    with engine_for(model, drafter=Proposer(lambda ahead: ahead[:2], *texts)) as engine:
        found = engine.generate(prompts, max_new_tokens=[9, 12], given=given)
        assert [one.tokens for one in found] == given
        assert engine.stats.accepted == engine.stats.proposed > 0
    with engine_for(model) as engine:  # what is chosen comes after them
        (mixed,) = engine.generate(prompts[:1], max_new_tokens=13, given=given[:1])
        (after,) = engine.generate(texts[:1], max_new_tokens=4)
    assert mixed.tokens == [*given[0], *after.tokens]


def test_no_stop_token_of_a_given_text_ends_it_in_a_tensor_either():
    model = model_of()
    model.generation_config.eos_token_id = 7
    with engine_for(model) as engine:
        (found,) = engine.generate([[1]], max_new_tokens=4, given=torch.tensor([[5, 7, 9]]))
    assert (found.tokens[:3], len(found.tokens)) == ([5, 7, 9], 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1]], "given: 1 texts; expected one for each of the 2 prompts"),
        ([[1], [320]], "given: token 320; expected 0 to 319"),
        (["a", "b"], "given='a': expected token ids"),
        ([[1], [0.5]], r"given=\[0.5\]: expected token ids"),
        (3, "given=3: expected the token ids of a text for each prompt"),
    ],
)
def test_given_texts_that_do_not_fit_are_refused(given, message):
    with engine_for(model_of()) as engine, pytest.raises(TrimtabError, match=message):
        engine.generate(prompts_of(5, 7), max_new_tokens=2, given=given)
