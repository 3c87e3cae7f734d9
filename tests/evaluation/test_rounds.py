"""Rounds of timing: how many, in what order, and that nothing of it favours a model."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.noise import NOISES
from trimtab.config import SpeedConfig
from trimtab.evaluation import rounds
from trimtab.evaluation.intervals import half_width
from trimtab.evaluation.rounds import Rounds
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Prompt

PROMPTS = [Prompt("document", "text", "more"), Prompt("document", "other", "more")]


def timing(seconds: float) -> Timing:
    return Timing(seconds / 2, [seconds / 2], [1, 1], seconds, 1, 2, 1, 2, 0, 0, 0)


class Machine:
    """Stands for all models: what each takes is up to `seconds`, given what ran before it."""

    def __init__(self, seconds: Any) -> None:
        self.ran: list[tuple[str, str]] = []
        self._seconds = seconds

    def model(self, name: str, *_: Any) -> Any:
        def teacher_forced(prompt: Prompt) -> Timing:
            found = timing(self._seconds(name, self.ran))
            self.ran.append((name, prompt.text))
            return found

        generator = SimpleNamespace(teacher_forced=teacher_forced)
        model = SimpleNamespace(device=torch.device("cpu"))
        return SimpleNamespace(name=name, model=model, base_tokenizer=None, generator=generator)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "Reader", lambda *_: lambda: 1e9)
    monkeypatch.setattr(rounds, "twin", lambda model: model)
    monkeypatch.setattr(rounds, "track", lambda items, *_: items)
    monkeypatch.setattr(rounds, "LoadWatch", lambda: SimpleNamespace(watching=nullcontext))


@pytest.fixture
def time_rounds(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(machine: Machine, *names: str, seed: int = 0, **settings: Any) -> Rounds:
        monkeypatch.setattr(rounds, "Contender", machine.model)
        found = Rounds(PROMPTS, SpeedConfig(**settings), seed)
        found.run([machine.model(name) for name in names])
        return found

    return run


BOTH = ("baseline", "candidate")


@pytest.mark.parametrize(
    ("spread", "settings", "expected"),
    [
        (0.001, {}, ("precision", 5)),
        (0.2, {"more_repeats": 2, "precision": 1e-3}, ("count", 7)),
        (0.2, {"seconds": 0, "precision": 1e-3}, ("time", 5)),
        (0.1, {"more_repeats": 500, "precision": 0.02}, ("precision", None)),
    ],
)
def test_rounds_are_added_until_a_limit_is_reached(time_rounds, spread, settings, expected):
    random = np.random.default_rng(0)
    machine = Machine(lambda name, ran: np.exp(random.normal(0, spread)))
    found = time_rounds(machine, *BOTH, **settings)
    reason, count = expected
    assert found.stopped_by == reason
    assert found.done == count or (count is None and 5 < found.done < 505)
    width = half_width(found.speedup(lambda one: one.total))
    assert (width <= settings.get("precision", 0.03)) == (reason == "precision")
    assert {name: len(own) for name, own in found.timings.items()} == dict.fromkeys(
        ("baseline", "candidate", "control"), 2 * found.done
    )
    assert len(found.read) == 3 * 2 * found.done


def test_alone_a_model_is_timed_as_often_as_asked_and_the_baseline_beside_its_control(time_rounds):
    random = np.random.default_rng(0)
    machine = Machine(lambda name, ran: np.exp(random.normal(0, 0.5)))
    candidate = time_rounds(machine, "candidate", repeats=3, warmup=0)
    baseline = time_rounds(machine, "baseline", repeats=3, warmup=0)
    assert [len(own) for own in candidate.timings.values()] == [0, 6, 0]
    assert [len(own) for own in baseline.timings.values()] == [6, 0, 6]


def test_in_a_round_every_model_has_every_prompt_once_and_every_order_comes_up(time_rounds):
    machine = Machine(lambda name, ran: 1.0)
    time_rounds(machine, *BOTH, repeats=40, warmup=0)
    turns = [machine.ran[start : start + 3] for start in range(0, len(machine.ran), 3)]
    assert [turn[0][1] for turn in turns] == ["text", "other"] * 40
    assert all(len({text for _, text in turn}) == 1 for turn in turns)
    assert len({tuple(name for name, _ in turn) for turn in turns}) == 6


@pytest.mark.parametrize(
    "seconds",
    [
        lambda name, ran: 0.9 if ran and ran[-1][0] == name else 1.0,  # its own caches are warm
        lambda name, ran: 1.1 if not ran or len(ran) % 3 == 0 else 1.0,  # first after the prompt
        lambda name, ran: 0.999 ** len(ran),  # the machine gets faster
        lambda name, ran: 1.1 if (len(ran) // 3) % 2 == 0 and len(ran) % 3 else 1.0,
    ],
    ids=["carried over", "first", "drift", "every other prompt"],
)
def test_nothing_of_the_order_favours_a_model(time_rounds, seconds):
    held = 0
    for seed in range(40):
        found = time_rounds(Machine(seconds), *BOTH, seed=seed, repeats=10, more_repeats=0)
        for of in ("candidate", "control"):
            interval = found.speedup(lambda one: one.total, of=of)
            held += interval["low"] <= 1 <= interval["high"]
    assert held >= 0.925 * 80


@pytest.mark.parametrize("noise", NOISES, ids=lambda one: one.__name__)
def test_stopping_when_the_interval_is_narrow_leaves_it_true(time_rounds, noise):
    held, jobs = 0, 300
    for seed in range(jobs):
        random = np.random.default_rng(seed)
        factors = iter(noise(6 * 21, random))
        machine = Machine(lambda name, ran, factors=factors: next(factors))
        found = time_rounds(machine, *BOTH, seed=seed, warmup=0, repeats=3, more_repeats=18)
        interval = found.speedup(lambda one: one.total)
        held += interval["low"] <= 1 <= interval["high"]
    assert held >= 0.9 * jobs


def test_the_baseline_and_its_control_are_objects_that_have_not_run(time_rounds, monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(rounds, "twin", lambda model: made.append(model) or model)
    machine = Machine(lambda *_: 1.0)
    time_rounds(machine, "baseline", "candidate", warmup=0, repeats=3, more_repeats=0)
    assert len(made) == 2
    assert sorted({name for name, _ in machine.ran}) == ["baseline", "candidate", "control"]
    made.clear()
    time_rounds(machine, "candidate", warmup=0, repeats=3, more_repeats=0)
    assert not made
