"""Servers of requests that arrive together: the same texts, and what they hold meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import tiny
from trimtab.corpus import encode
from trimtab.evaluation.cache_memory import CacheKind
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators.continuous import ContinuousServer, quiet
from trimtab.evaluation.generators.engine_server import EngineServer
from trimtab.evaluation.generators.padded import PaddedServer
from trimtab.evaluation.generators.server import Request, Server
from trimtab.models.random import byte_tokenizer
from trimtab.stack import Stack
from trimtab.vattention import VAttention

BASE = byte_tokenizer()
TEXT = "The following operations are the same as those of the other expressions in the list. "
SIZES = [(40, 9), (7, 3), (64, 5), (20, 12)]  # of prompts and texts
OPEN = [Request(encode(BASE, TEXT)[:size], new) for size, new in SIZES]
GIVEN = [Request(one.prompt, one.new, encode(BASE, TEXT)[-one.new :]) for one in OPEN]
TOKEN = 3 * 2 * 2 * 16 * 4  # bytes: layers, keys and values, heads, width, float32
PAGE = 4096
CACHED = sum(size + new - 1 for size, new in SIZES)
# A text leaves the cache of the others when it is at its end.
TOGETHER = max(sum(size + step for size, new in SIZES if step < new) for step in range(12))
PADDED = len(SIZES) * (64 + 12 - 1)
SERVERS = ["padded", "static", "continuous", "engine"]


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def server(name: str, model: Any, running: ExitStack, budget: int | None = None) -> Server:
    if name == "continuous":
        running.enter_context(quiet())
        made = ContinuousServer(model, OPEN, budget, TOKEN)
        running.callback(made.close)
        return made
    if name == "engine":
        methods = [VAttention(page_group=PAGE)]
        applied = running.enter_context(Stack(methods).apply(model, BASE, {}))
        one = Contender("candidate", model, BASE, applied)
        return EngineServer(running.enter_context(one.running_engine(4, 76, budget)))
    kind = CacheKind.static if name == "static" else CacheKind.dynamic
    return PaddedServer(model, BASE, kind, budget, TOKEN)


@pytest.mark.parametrize("name", SERVERS)
def test_all_write_the_greedy_text_that_each_prompt_has_alone(name, running):
    expected = [PaddedServer(tiny().model, BASE).serve([one]).tokens[0] for one in OPEN]
    one = server(name, tiny().model, running)
    one.warm_up(OPEN)
    for _ in range(2):  # nothing is kept for the next call
        answer = one.serve(OPEN)
        assert answer.tokens == expected
        assert (answer.at_once, answer.preempted) == (4, 0)
        assert all(0 < first <= answer.seconds for first in answer.first)


@pytest.mark.parametrize("name", ["padded", "static", "engine"])
def test_a_given_text_is_written_even_past_a_stop_token(name, running):
    model = tiny().model
    model.generation_config.eos_token_id = GIVEN[0].given[2]
    one = server(name, model, running)
    one.warm_up(GIVEN)
    assert one.serve(GIVEN).tokens == [request.given for request in GIVEN]


@pytest.mark.parametrize(
    ("name", "committed"),
    [
        ("padded", PADDED * TOKEN),
        ("static", PADDED * TOKEN),
        # All four at full length, and two blocks that are there for padding.
        ("continuous", (4 * -(-76 // 16) + 2) * 16 * TOKEN),
    ],
)
def test_what_is_committed_beyond_the_texts_own_tokens_is_waste(name, committed, running):
    one = server(name, tiny().model, running)
    held = one.serve(OPEN).memory
    assert held.committed == committed
    assert held.live == (TOGETHER if name == "continuous" else CACHED) * TOKEN
    assert held.measured is None or held.measured >= held.committed


def test_the_engine_commits_pages_only_where_there_are_tokens(running):
    one = server("engine", tiny().model, running)
    one.warm_up(OPEN)
    held = one.serve(OPEN).memory
    rows = sum(-(-(size + new) // (PAGE // 128)) for size, new in SIZES)
    assert held.committed <= rows * PAGE * 6 + 2 * PAGE * 6  # and some made ready ahead
    assert held.committed < PADDED * TOKEN
    assert held.live == TOGETHER * TOKEN
    assert held.committed == held.measured


def test_under_a_budget_batches_are_cut_and_the_engine_preempts(running):
    budget = 150 * TOKEN
    padded = server("padded", tiny().model, running, budget)
    assert padded.capacity == 150
    answer = padded.serve(GIVEN)
    assert answer.tokens == [request.given for request in GIVEN]
    assert answer.at_once == 2
    assert answer.memory.committed <= budget
    assert answer.first[0] == answer.first[1] < answer.first[2] < answer.seconds
    engine = server("engine", tiny().model, running, budget)
    engine.warm_up(GIVEN)
    answer = engine.serve(GIVEN)
    assert answer.tokens == [request.given for request in GIVEN]
    assert answer.memory.committed <= budget
    assert answer.at_once < 4
    continuous = server("continuous", tiny().model, running, budget)
    assert continuous.capacity == 112  # two of the nine blocks take what padding writes
    answer = continuous.serve(OPEN)
    assert answer.memory.committed <= budget
    assert list(map(len, answer.tokens)) == [new for _, new in SIZES]
    assert answer.at_once < 4
