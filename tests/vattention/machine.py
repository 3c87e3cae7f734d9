"""Arbitrary series of operations, drawn by Hypothesis, on a cache and a model of it.

``python -m tests.vattention.machine 100000`` runs that many operations.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.vattention.conftest import PAGE, failing, host_pool
from tests.vattention.mirror import Mirror, close, make_cache
from trimtab.vattention.pages import KVOutOfMemory, PageError
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout

ROWS = 24  # of the budget; five full slots would need 50, or 95 in `mega`
STEPS = 100  # the most operations on one cache
CALLS = ("create", "map", "protect", "unmap")
# Sometimes the system refuses the k-th call of an operation.
failures = st.sampled_from([None] * 4 * len(CALLS) + [*CALLS]).flatmap(
    lambda call: st.none() if call is None else st.tuples(st.just(call), st.integers(1, 8))
)
growth = st.sampled_from([0, 1, 1, 1, 5, 30, 30, 200])
Failure = tuple[str, int] | None
with_room = precondition(lambda self: len(self.mirror.tokens) < self.kv.geometry.slots)


class CacheMachine(RuleBasedStateMachine):
    """One cache and its model.

    Memory is refused exactly when the model has no row left, calls of the system sometimes fail,
    and everything that is not live is NaN.

    Parameters
    ----------
    make_pool : callable
        Given a budget in bytes.
    counts : Counter
        Of the operations done; updated in place.
    """

    def __init__(self, make_pool: Callable[..., PagePool], counts: Counter[str]) -> None:
        super().__init__()
        self.pool = make_pool(budget=2 * ROWS * PAGE)
        self.counts = counts

    @initialize(
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        layout=st.sampled_from(list(Layout)),
        lookahead=st.booleans(),
    )
    def begin(self, dtype, layout, lookahead):
        self.kv = make_cache(
            self.pool,
            layers=1,
            slots=5,
            max_len=800 // dtype.itemsize,
            layout=layout,
            dtype=dtype,
            lookahead=lookahead,
        )
        self.mirror = Mirror(self.kv)
        # One slot is always in use, so that every operation is possible.
        self.mirror.acquire()
        self.rows = self.pool.budget // (self.kv.geometry.planes * PAGE)

    @with_room
    @rule(failure=failures)
    def acquire(self, failure):
        self.attempt("acquire", failure, self.mirror.acquire)

    @rule(data=st.data(), failure=failures)
    def ensure(self, data, failure):
        self.attempt("ensure", failure, self.grow, data, self.some_slots(data))

    @rule(data=st.data(), failure=failures)
    def rewind(self, data, failure):
        """Shorten some slots, as when drafts are rejected, and then grow them together."""
        slots = self.some_slots(data)
        for slot in slots:
            length = len(self.mirror.tokens[slot])
            self.mirror.truncate(slot, max(0, length - data.draw(st.integers(1, 60), "less")))
        self.attempt("rewind", failure, self.grow, data, slots)

    @with_room
    @rule(data=st.data(), whole=st.booleans(), failure=failures)
    def fork(self, data, whole, failure):
        source = self.a_slot(data)
        length = len(self.mirror.tokens[source])
        if not whole:
            length = data.draw(st.integers(0, length), "length")
        rows = [*self.mirror.pages.values(), self.mirror.forked(source, length)]
        self.attempt("fork", failure, self.expect_refusal, rows, self.mirror.fork, source, length)

    @rule(data=st.data(), failure=failures)
    def truncate(self, data, failure):
        slot = self.a_slot(data)
        length = data.draw(st.integers(0, len(self.mirror.tokens[slot])), "length")
        self.attempt("truncate", failure, self.mirror.truncate, slot, length)

    @precondition(lambda self: len(self.mirror.tokens) > 1)
    @rule(data=st.data(), failure=failures)
    def release(self, data, failure):
        self.attempt("release", failure, self.mirror.release, self.a_slot(data))

    @rule(failure=failures)
    def trim(self, failure):
        def checked() -> None:
            # No row is being prepared: the invariant has waited for that.
            before = self.pool.stats().committed
            freed = self.kv.trim()
            assert self.kv.stats().cached == 0
            assert self.pool.stats().committed == before - freed

        self.attempt("trim", failure, checked)

    @rule(failure=failures)
    def sleep(self, failure):
        def checked() -> None:
            self.kv.sleep()
            assert self.pool.stats().committed == 0
            try:
                self.kv.wake()
            except PageError:
                self.kv.wake()
                raise

        self.attempt("sleep", failure, checked)

    @invariant()
    def every_token_is_as_written_and_the_accounts_are_right(self):
        self.mirror.poison()
        self.mirror.check()

    def teardown(self):
        if hasattr(self, "kv"):
            for slot in tuple(self.mirror.tokens):
                self.mirror.release(slot)
            self.kv.trim()
            assert self.kv.stats().committed == self.pool.stats().committed == 0
            close(self.kv)
        self.pool.close()

    def attempt(self, name: str, failure: Failure, operation, *arguments) -> None:
        """Do one operation, which may fail if a call of the system does, and count it."""
        guard = nullcontext() if failure is None else failing(self.pool, *failure)
        try:
            with guard:
                operation(*arguments)
            self.counts[name] += 1
        except PageError:
            assert failure is not None
            self.counts["failed"] += 1

    def a_slot(self, data) -> int:
        return data.draw(st.sampled_from(sorted(self.mirror.tokens)), "slot")

    def some_slots(self, data) -> list[int]:
        """Return some of the slots in use, in any order."""
        used = st.sampled_from(sorted(self.mirror.tokens))
        return data.draw(st.lists(used, min_size=1, unique=True), "slots")

    def grow(self, data, slots: list[int]) -> None:
        lengths = {
            slot: min(
                len(self.mirror.tokens[slot]) + data.draw(growth, "more"), self.kv.geometry.max_len
            )
            for slot in slots
        }
        self.expect_refusal(self.mirror.grown(lengths).values(), self.mirror.ensure, lengths)

    def expect_refusal(self, rows, operation, *arguments) -> None:
        """Do an operation, which must be refused exactly if it would leave too many rows live."""
        too_many = len({row for slot in rows for row in slot}) > self.rows
        before = self.pool.stats().committed
        try:
            operation(*arguments)
            refusal = None
        except KVOutOfMemory as error:
            refusal = error
        assert (refusal is not None) == too_many
        if refusal is not None:
            self.counts["refused"] += 1
            assert refusal.needed > refusal.free + refusal.reclaimable
            assert self.pool.stats().committed <= before


def run(caches: int, make_pool: Callable[..., PagePool], **more) -> Counter[str]:
    """Run a series of operations on each of that many caches; return what was done."""
    counts: Counter[str] = Counter()
    chosen = settings(
        max_examples=caches, stateful_step_count=STEPS, database=None,
        suppress_health_check=[*HealthCheck], **more,
    )  # fmt: skip
    run_state_machine_as_test(partial(CacheMachine, make_pool, counts), settings=chosen)
    return counts


def main(operations: int) -> None:
    start, counts, caches = time.perf_counter(), Counter(), 0
    while (done := counts.total() - counts["refused"]) < operations:
        # At least one more; enough to get there if every series is as long as possible.
        more = -(-(operations - done) // STEPS)
        counts += run(more, host_pool)
        caches += more
    print(f"{done} operations on {caches} caches in {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{name} {number}" for name, number in counts.most_common()))
    print("every token as written after every operation; nothing left at the end")


if __name__ == "__main__":
    main(int(sys.argv[1]))
