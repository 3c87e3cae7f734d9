"""What a scenario cannot show of a stack, and that *latency* says so."""

from __future__ import annotations

import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from tests.evaluation.test_result import configured
from tests.evaluation.vocabulary import node
from trimtab.commands.evaluate import evaluate
from trimtab.config import METRICS
from trimtab.evaluation import reach
from trimtab.evaluation.reach import held_back, unseen
from trimtab.generation.executor import MOST_ROWS

PAGE = 100  # tokens
SHORT, LONG = "no text is longer than a page", "shorter than a draft may be"
PREFILL = "of the unmodified model's time is prefill"


def contender(*members: str) -> Any:
    cache, drafter = (name if name in members else None for name in ("cache", "drafter"))
    return SimpleNamespace(stack=SimpleNamespace(members=members, cache=cache, drafter=drafter))


@pytest.mark.parametrize(
    ("members", "texts", "decoding", "expected"),
    [
        ((), [(1, 1)], 0.0, []),
        (("cache",), [(20, 40), (PAGE - 40, 40)], 0.5, [SHORT]),
        (("cache",), [(20, 40), (PAGE - 39, 40)], 0.5, []),
        (("drafter",), [(1, MOST_ROWS - 1)], 0.5, [LONG]),
        (("drafter",), [(1, 2), (1, MOST_ROWS)], 0.5, []),
        (("other",), [(1, 1)], 0.5, []),
        (("other",), [(1, 1)], 0.24, [PREFILL]),
        (("cache", "drafter"), [(1, 1)], 0.1, [SHORT, LONG, PREFILL]),
    ],
)
def test_an_effect_that_a_scenario_is_too_small_for_is_named(
    monkeypatch, members, texts, decoding, expected
):
    monkeypatch.setattr(reach.Pages, "of", lambda *_: SimpleNamespace(tokens=PAGE))
    found = [*unseen("latency", "generation", contender(*members), texts, decoding)]
    assert [part in one for one, part in zip(found, expected, strict=True)] == [True] * len(found)
    assert all(one.startswith("scenario latency: ") and "raise generation." in one for one in found)


class Skips:
    """A method at work that leaves weights unread."""

    recording = nullcontext

    def extra_step_bytes(self) -> int:
        return -1


@pytest.mark.parametrize(
    ("members", "head", "copied", "expected"),
    [
        ([Skips()], 30, 0, "all of the head, .* 38% of .* a step is at most 1.60 times as fast"),
        ([Skips()], 120, 30, "all of the int8 copy of the head, as many bytes as 38% of all"),
        ([Skips()], 120, 26, None),
        ([Skips()], 26, 0, None),
        ([object()], 30, 0, None),
    ],
)
def test_a_head_that_bounds_the_gain_is_named(members, head, copied, expected):
    weight = SimpleNamespace(nbytes=head)
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=weight))
    one: Any = SimpleNamespace(stack=SimpleNamespace(members=members), model=model)
    found = [*held_back(one, {"baseline": 80, "candidate": 50}, copied)]
    assert len(found) == (expected is not None)
    assert not found or re.search(expected, found[0])


def test_latency_says_what_it_cannot_show(tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "LEAST_DECODING", 1.1)
    only = [f"~metrics.{name}" for name in METRICS if name not in ("greedy", "latency")]
    config = configured(tmp_path, "model=random", "model.config=tiny-llama", *only)
    warned = {}
    for methods in (
        {},
        {"vattention": {"_target_": "trimtab.vattention.VAttention"}, **node("draft")},
    ):
        config.methods = methods
        found = evaluate(config, "test")["warnings"]
        warned[len(methods)] = [one for one in found if one.startswith("scenario latency: ")]
    assert warned[0] == []
    told = zip(warned[2], (SHORT, "texts of up to 6 tokens", PREFILL), strict=True)
    assert all(part in one for one, part in told)
