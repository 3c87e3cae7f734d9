"""Drafts change how many steps a text takes, and nothing of the text."""

from __future__ import annotations

import random

import pytest

from tests.generation.models import TOKENIZER, engine_for, model_of, prompts_of
from trimtab.generation import Finish, Sampling

NEW = 20


class Proposer:
    """Proposes what `guess` makes of the true continuation of one text."""

    context = 1000

    def __init__(self, text: list[int], guess) -> None:
        self.text, self.guess = text, guess

    def propose(self, ids) -> list[int]:
        assert list(ids) == self.text[: len(ids)]
        return self.guess(self.text[len(ids) :])


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
# Draft tokens accepted, steps with a draft and steps without, for the tokens behind the first.
EXPECTED = {
    "perfect": (15, 4, 0),
    "longer than wanted": (18, 1, 0),
    "wrong": (0, 18, 1),
    "none": (0, 0, 19),
}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=2)], ids=str)
@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("variant", ["llama", "gemma2", "mistral, window"])
def test_the_text_is_the_same(variant, guess, sampling):
    model = model_of(variant)
    (prompt,) = prompts_of(11)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=NEW, sampling=sampling)
    drafter = Proposer(prompt + plain.tokens, GUESSES[guess])
    with engine_for(model, drafter=drafter) as engine:
        (found,) = engine.generate([prompt], max_new_tokens=NEW, sampling=sampling)
        stats = engine.stats
    assert found.tokens == plain.tokens
    assert found.text == plain.text
    # Each step yields a token of its own beside those accepted; the prompt's yields one too.
    assert stats.verify_steps + stats.decode_steps + stats.accepted == len(plain.tokens) - 1
    assert found.steps == 1 + stats.verify_steps + stats.decode_steps
    assert bool(stats.proposed) == (guess != "none")
    if guess == "mixed":
        assert 0 < stats.accepted < stats.proposed
    else:
        steps = stats.verify_steps, stats.decode_steps
        assert (stats.accepted, *steps) == EXPECTED[guess]


@pytest.mark.parametrize("finish", [Finish.stop, Finish.stop_string])
def test_a_draft_ends_with_the_text(finish):
    """A stop token or a stop string within a draft, and nothing is handed out behind it."""
    model = model_of()
    (prompt,) = prompts_of(11)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=NEW)
    end, stop, handed = plain.tokens[6], [], []
    if finish is Finish.stop:
        model.generation_config.eos_token_id = end
    else:
        stop = [TOKENIZER.decode([end])]
    drafter = Proposer(prompt + plain.tokens, lambda ahead: ahead[:8])
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


def test_several_texts_go_on_undrafted_until_one_is_left():
    model = model_of()
    prompts = prompts_of(6, 9)
    with engine_for(model) as engine:
        plain = engine.generate(prompts, max_new_tokens=[16, 6])
    drafter = Proposer(prompts[0] + plain[0].tokens, lambda ahead: ahead[:3])
    with engine_for(model, drafter=drafter, prefill_chunk=64) as engine:
        found = engine.generate(prompts, max_new_tokens=[16, 6])
        stats = engine.stats
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert stats.decode_steps == 5
    assert stats.verify_steps == 3  # of 15 tokens 5 are there, and a step yields 4
    assert found[0].steps == 1 + 5 + 3


def test_a_draft_that_memory_has_no_room_for_is_dropped():
    def long_draft(ahead: list[int]) -> list[int]:
        """Guess right up to the stop token, of which 32 tokens lie ahead, and wrong from there."""
        return [*ahead[:-33], *[5] * 28]

    model = model_of()
    (prompt,) = prompts_of(28)
    with engine_for(model) as engine:
        (plain,) = engine.generate([prompt], max_new_tokens=36)
    model.generation_config.eos_token_id = plain.tokens[3]
    drafter = Proposer(prompt + plain.tokens, long_draft)
    with engine_for(model, drafter=drafter, budget=2 * 6 * 4096) as engine:
        other = engine.kv.acquire()
        engine.kv.ensure({other: 1})  # one of the two page rows is somebody else's
        (found,) = engine.generate([prompt], max_new_tokens=36)
        assert engine.stats.decode_steps == len(found.tokens) - 1
        engine.kv.release(other)
        (again,) = engine.generate([prompt], max_new_tokens=36)
        assert engine.stats.verify_steps == 1
    assert found.tokens == again.tokens == plain.tokens[:4]
