"""Drafts are as long as pays, by costs that are given, or measured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import FLAT
from tests.generation.models import engine_for, model_of, prompts_of
from tests.generation.toys import Guesses, request_of
from trimtab.generation import cost_cache, costs
from trimtab.generation.cost_cache import StepCosts
from trimtab.generation.costs import step_costs
from trimtab.generation.drafts import WORTH, Drafts
from trimtab.generation.executor import MOST_ROWS
from trimtab.generation.forward import Forward
from trimtab_kernels.decode_step import Selection, SiteInput, cpu

chances = st.lists(st.floats(0.01, 1.0), max_size=4)
increases = st.lists(st.floats(0.0, 1.0), min_size=7, max_size=7)


class Offered:
    """Proposes the tokens 10, 11, ... with given probabilities, one list for each text."""

    def __init__(self, *chances: Sequence[float]) -> None:
        self.chances = list(chances)

    def start(self, ids: Sequence[int]) -> Offered:
        return Offered(self.chances.pop(0))

    def accept(self, tokens: Sequence[int]) -> None:
        pass

    def propose(self, limit: int) -> list[tuple[int, float]]:
        return list(enumerate(self.chances[0], 10))[:limit]


def requests_for(count: int, new: int = 50):
    return [request_of(index, [1], new) for index in range(count)]


def expected_tokens(chances: Sequence[float], length: int) -> float:
    return 1 + sum(itertools.accumulate(chances[:length], lambda a, b: a * b))


@settings(max_examples=200)
@given(texts=st.lists(chances, min_size=1, max_size=3), increases=increases)
def test_no_other_lengths_yield_more_tokens_in_a_time(texts, increases):
    known = StepCosts((1.0, *itertools.accumulate(increases, initial=1.0))[1:])

    def rate(lengths: Sequence[int]) -> float:
        tokens = sum(expected_tokens(*pair) for pair in zip(texts, lengths, strict=True))
        return tokens / known.of(len(texts) + sum(lengths))

    drafts = Drafts(Offered(*texts), known, frozenset()).choose(requests_for(len(texts)))
    found = [len(drafts.get(index, [])) for index in range(len(texts))]
    assert all(draft == list(range(10, 10 + len(draft))) for draft in drafts.values())
    assert len(texts) + sum(found) <= known.most_rows
    possible = [
        lengths
        for lengths in itertools.product(*(range(len(text) + 1) for text in texts))
        if len(texts) + sum(lengths) <= known.most_rows
    ]
    best, without = max(map(rate, possible)), rate([0] * len(texts))
    if best > WORTH * without * (1 + 1e-9):
        assert rate(found) == pytest.approx(best)
    else:
        assert not any(found)


def test_nothing_is_drafted_where_it_cannot_pay():
    """Where a step over more rows costs as much as more steps, not even what is certain."""
    linear = StepCosts(tuple(map(float, range(1, 9))))
    for count in (1, 3):
        assert not Drafts(Offered(*[[1.0] * 5] * count), linear, frozenset()).choose(
            requests_for(count)
        )


def test_rows_go_to_the_texts_whose_drafts_are_likeliest():
    steep = StepCosts((1.0, 1.0, 1.0, 1.0, 1.0, 9.0))
    drafts = Drafts(Offered([0.5] * 5, [0.9] * 5), steep, frozenset())
    assert drafts.choose(requests_for(2)) == {1: [10, 11, 12]}
    assert not drafts.choose(requests_for(2)[:0])
    assert not Drafts(Offered(*[[1.0]] * 6), steep, frozenset()).choose(requests_for(6))


def test_a_draft_ends_before_special_tokens_and_leaves_room_for_the_token_after_it():
    offered = [1.0] * 4
    assert Drafts(Offered(offered), FLAT, frozenset({12})).choose(requests_for(1)) == {0: [10, 11]}
    assert Drafts(Offered(offered), FLAT, frozenset()).choose(requests_for(1, 4)) == {
        0: [10, 11, 12]
    }
    assert not Drafts(Offered(offered), FLAT, frozenset()).choose(requests_for(1, 1))


@pytest.mark.parametrize(("right", "most"), [(True, 0.75), (False, 1.02)])
def test_a_drafter_that_promises_too_much_is_tried_less_and_less(right, most):
    """Time over that without drafts, for 300 tokens."""
    known = StepCosts(tuple(1 + 0.12 * rows for rows in range(MOST_ROWS)))
    drafts = Drafts(Offered([1.0] * 9), known, frozenset())
    (request,) = requests_for(1, 1000)
    spent = tokens = 0.0
    while tokens < 300:
        draft = drafts.choose([request]).get(0, [])
        accepted = len(draft) if right else 0
        if draft:
            drafts.judge(0, len(draft), accepted)
        tokens += 1 + accepted
        spent += known.of(1 + len(draft))
    assert spent / tokens < most


def test_counts_of_a_draft_by_position():
    model = model_of()
    (prompt,) = prompts_of(11)
    with engine_for(model, drafter=Guesses(0, 3)) as engine:
        engine.generate([prompt], max_new_tokens=6)
        stats = engine.stats
    assert stats.step_costs == list(FLAT.relative)
    # Of five tokens after the first, the last two have room for one and for no draft.
    assert stats.proposed_by_position == [4, 3, 2]
    assert stats.accepted_by_position == [0, 0, 0]
    assert stats.proposed == 9


def test_relative_times_do_not_follow_a_stall_nor_a_lucky_sample():
    samples = [[2.0, 2.1, 1.9, 0.1], [2.4, 2.4, 9.0], [2.2, 2.2, 2.2], [4.0, 30.0, 4.0]]
    one, two, both = 1.95, 2.4, 2.3
    assert two > both > one
    assert costs._relative([1, 2, 3, 5], samples) == pytest.approx(
        [1, both / one, both / one, (both + 4) / 2 / one, 4 / one]
    )


@pytest.fixture
def clock(monkeypatch):
    """Return what the time of steps is measured by: a list with the seconds so far."""
    now = [0.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    return now


def steps_of(clock: list[float], spread: float) -> list[Callable[[], None]]:
    """Return steps of 10, 20, ... ms, whose standard deviation is a share of that."""
    draw = np.random.default_rng(0)

    def step(place: int) -> None:
        clock[0] += 0.01 * (place + 1) * (1 + spread * draw.standard_normal())

    return [partial(step, place) for place in range(8)]


def test_steps_over_few_rows_are_timed_most_and_for_so_long(clock):
    samples = costs._timed(steps_of(clock, spread=0.2))
    assert [len(own) for own in samples[costs.FEW :]] == [costs.LEAST] * 4
    assert min(map(len, samples[: costs.FEW])) > 5 * costs.LEAST
    assert clock[0] == pytest.approx(costs.ENOUGH, rel=0.1)
    warming_up = clock[0] - sum(map(sum, samples))
    assert warming_up == pytest.approx(0.08, rel=0.5)  # the last one, once
    for place, own in enumerate(samples):
        assert np.median(own) == pytest.approx(0.01 * (place + 1), rel=0.3)


def test_times_are_taken_until_they_are_precise(clock):
    quiet, more = (costs._timed(steps_of(clock, spread)) for spread in (0.001, 0.06))
    assert [len(own) for own in quiet] == [costs.LEAST_OF_FEW] * 4 + [costs.LEAST] * 4
    assert costs.LEAST_OF_FEW < len(more[0]) < 40
    error = 1.2533 * 0.06 * np.sqrt(2 / len(more[0]))  # of the ratio of two medians
    assert error == pytest.approx(costs.PRECISE, rel=0.5)


@pytest.fixture
def measures(monkeypatch, tmp_path):
    """Have engines measure the costs of steps, and keep them in a folder of the test's own."""
    monkeypatch.setattr("trimtab.generation.engine.step_costs", step_costs)
    monkeypatch.setattr(costs, "ENOUGH", 0)
    monkeypatch.setattr(cost_cache, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def measured(measures, monkeypatch):
    """Return the list of measurements, which grows with each."""
    made, timed = [], costs._timed
    monkeypatch.setattr(costs, "_timed", lambda steps: made.append(1) or timed(steps))
    return made


@pytest.mark.parametrize("by_modules", [False, True])
def test_costs_are_measured_once_for_a_model_as_it_is(monkeypatch, measured, by_modules):
    if by_modules:
        monkeypatch.setattr(cpu, "unavailable", lambda *_: "for this test")
    model = model_of()

    def entered(max_len: int) -> list[float]:
        with engine_for(model, max_len=max_len, drafter=Guesses(0, 0)) as engine:
            assert engine.kv.stats().live == engine.kv.stats().committed == 0
            engine.generate(prompts_of(3), max_new_tokens=2)
            return engine.stats.step_costs

    found = entered(128)
    assert found[0] == 1
    assert found == sorted(found)
    assert len(found) == MOST_ROWS
    assert entered(128) == found
    assert len(measured) == 1
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    assert len(entered(5)) == 5  # no text has more rows
    assert len(measured) == 2
    assert len(entered(128)) == MOST_ROWS
    with engine_for(model) as engine:
        assert engine.stats.step_costs is None
    assert len(measured) == 2  # that of the same shape was kept


def stats_of(model):
    with engine_for(model, drafter=Guesses(0, 0)) as engine:
        return engine.stats


def test_costs_are_kept_for_the_next_process(measured):
    """A new model object of the same kind stands for one of another process."""
    first = stats_of(model_of())
    again = stats_of(model_of())
    assert again.step_costs == first.step_costs
    assert again.step_costs_measured == first.step_costs_measured
    assert 0 < again.step_costs_seconds == first.step_costs_seconds < 60
    age = datetime.now(UTC) - datetime.fromisoformat(first.step_costs_measured)
    assert timedelta(0) <= age < timedelta(minutes=5)
    assert len(measured) == 1


class Selecting(nn.Module):
    """Stands for a module that drops what is below a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def site_input(self) -> SiteInput:
        return SiteInput(selection=Selection(32, self.threshold))


def test_costs_belong_to_what_a_method_skips():
    model, kv = model_of(), SimpleNamespace(lengths=range(2))

    def subject(threshold: float) -> str:
        model.extra = Selecting(threshold)
        return cost_cache.subject_of(model, "executor", kv, 8)

    assert subject(0.5) == subject(0.5) != subject(0.6)


def other_model(monkeypatch):
    return model_of("qwen3")


def other_processor(monkeypatch):
    monkeypatch.setattr(cost_cache, "cpu_model", lambda: "another")
    return model_of()


def a_day_later(monkeypatch):
    monkeypatch.setattr(cost_cache, "LIFETIME", timedelta(0))
    return model_of()


@pytest.mark.parametrize("change", [other_model, other_processor, a_day_later])
def test_costs_of_something_else_are_measured(monkeypatch, measured, change):
    stats_of(model_of())
    stats_of(change(monkeypatch))
    assert len(measured) == 2


@pytest.mark.parametrize("relative", ["", "[]", '["x"]', "[1.0]", "[1, NaN]", "[2, 2, 2]"])
def test_a_broken_file_of_costs_is_measured_anew(measured, tmp_path, relative):
    first = stats_of(model_of())
    (file,) = (tmp_path / "cache" / "step-costs").iterdir()
    told = f'"measured": "{first.step_costs_measured}", "seconds": 1.0'
    file.write_text(f'{{"relative": {relative}, {told}}}')
    assert len(stats_of(model_of()).step_costs) == len(first.step_costs)
    assert len(measured) == 2
    assert json.loads(file.read_text())["relative"][0] == 1


def test_costs_are_measured_where_they_cannot_be_kept(measured, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder belongs")
    assert stats_of(model_of()).step_costs[0] == 1
    stats_of(model_of())
    assert len(measured) == 2


@pytest.mark.usefixtures("measures")
def test_the_rows_that_are_timed_are_different_tokens(monkeypatch):
    timed, choose = [], Forward.choose
    monkeypatch.setattr(
        Forward, "choose", lambda own, spans: timed.append(spans[0].ids) or choose(own, spans)
    )
    with engine_for(model_of(), drafter=Guesses(0, 0)):
        pass
    assert {len(ids) for ids in timed} == {*costs.ROWS}
    assert all(len(set(ids)) > len(ids) / 2 for ids in timed)
