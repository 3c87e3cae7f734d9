"""Random operations on a cache beside a model of it: ``python -m tests.vattention.soak 100000``."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from contextlib import nullcontext

import torch

from tests.vattention.conftest import PAGE, failing
from tests.vattention.mirror import Mirror, close, make_cache
from toolkit.vattention.layout import Layout
from toolkit.vattention.pages import KVOutOfMemory, PageError, PagePool

ROWS = 24  # of budget, for five slots that would need 50, in `mega` 95
WEIGHTS = {
    "ensure": 10, "rewind": 6, "acquire": 4, "fork": 4, "truncate": 2, "release": 3, "trim": 1,
    "sleep": 0.3,
}  # fmt: skip


class Soak:
    """One cache, one model, one source of random numbers.

    Memory is refused exactly where the model has no row left, calls of the system fail now and
    then, and what is not live is full of NaN.
    """

    def __init__(self, pool: PagePool, seed: int) -> None:
        self.random = random.Random(seed)
        dtype = self.random.choice([torch.float32, torch.bfloat16])
        self.kv = make_cache(
            pool,
            layers=1,
            slots=5,
            max_len=800 // dtype.itemsize,
            layout=self.random.choice(list(Layout)),
            dtype=dtype,
            lookahead=self.random.random() < 0.5,
        )
        self.mirror = Mirror(self.kv)
        self.rows = pool.budget // (self.kv.geometry.streams * pool.page_bytes)
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        """Do one operation that makes sense now, and compare everything."""
        weights = WEIGHTS if self.mirror.tokens else {"acquire": 1, "trim": 1}
        (name,) = self.random.choices(list(weights), list(weights.values()))
        failure = nullcontext()
        if self.random.random() < 0.1:
            call = self.random.choice(["create", "map", "protect", "unmap"])
            failure = failing(self.kv.pool, call, self.random.randint(1, 8))
        try:
            with failure:
                getattr(self, name)()
            self.counts[name] += 1
        except PageError:
            self.counts["failed"] += 1
        self.mirror.poison()
        self.mirror.check()

    def slots(self) -> list[int]:
        """Return some of those in use, in any order."""
        used = list(self.mirror.tokens)
        return self.random.sample(used, self.random.randint(1, len(used)))

    def acquire(self) -> None:
        if len(self.mirror.tokens) < self.kv.geometry.slots:
            self.mirror.acquire()

    def ensure(self) -> None:
        self.grow(self.slots())

    def rewind(self) -> None:
        """Cut some slots back, as when drafts are rejected, and write them anew together."""
        slots = self.slots()
        for slot in slots:
            length = len(self.mirror.tokens[slot])
            self.mirror.truncate(slot, max(0, length - self.random.randint(1, 60)))
        self.grow(slots)

    def grow(self, slots) -> None:
        lengths = {}
        for slot in slots:
            present = len(self.mirror.tokens[slot])
            more = self.random.choice([0, 1, 1, 1, 5, 30, 30, 200])
            lengths[slot] = min(present + more, self.kv.geometry.max_len)
        self.expect_refusal(self.mirror.grown(lengths).values(), self.mirror.ensure, lengths)

    def fork(self) -> None:
        if len(self.mirror.tokens) == self.kv.geometry.slots:
            return
        source = self.slots()[0]
        length = len(self.mirror.tokens[source])
        length = self.random.choice([length, self.random.randint(0, length)])
        rows = [*self.mirror.pages.values(), self.mirror.forked(source, length)]
        self.expect_refusal(rows, self.mirror.fork, source, length)

    def truncate(self) -> None:
        slot = self.slots()[0]
        self.mirror.truncate(slot, self.random.randint(0, len(self.mirror.tokens[slot])))

    def release(self) -> None:
        self.mirror.release(self.slots()[0])

    def trim(self) -> None:
        before = self.kv.pool.stats().committed
        assert self.kv.trim() >= 0
        assert self.kv.stats().cached == 0
        assert self.kv.pool.stats().committed <= before

    def sleep(self) -> None:
        self.kv.sleep()
        assert self.kv.pool.stats().committed == 0
        try:
            self.kv.wake()
        except PageError:
            self.kv.wake()
            raise

    def expect_refusal(self, rows, operation, *arguments) -> None:
        """Do an operation, which must be refused if and only if it leaves too many rows live."""
        too_many = len({row for slot in rows for row in slot}) > self.rows
        before = self.kv.pool.stats().committed
        try:
            operation(*arguments)
            refusal = None
        except KVOutOfMemory as error:
            refusal = error
        assert (refusal is not None) == too_many
        if refusal is not None:
            self.counts["refused"] += 1
            assert refusal.needed > refusal.free + refusal.reclaimable
            assert self.kv.pool.stats().committed <= before


def run(operations: int, seed: int, pool: PagePool) -> Counter[str]:
    """Run random operations and assert that nothing is lost or left; return what was done."""
    soak = Soak(pool, seed)
    for _ in range(operations):
        soak.step()
    for slot in tuple(soak.mirror.tokens):
        soak.mirror.release(slot)
    soak.kv.trim()
    assert soak.kv.stats().committed == pool.stats().committed == 0
    close(soak.kv)
    return soak.counts


def main(operations: int, caches: int = 10) -> None:
    from toolkit.vattention.host import HostPool

    start, counts = time.perf_counter(), Counter()
    for seed in range(caches):
        pool = HostPool(PAGE, 2 * ROWS * PAGE)
        counts += run(operations // caches, seed, pool)
        pool.close()
    print(f"{operations} operations on {caches} caches in {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{name} {number}" for name, number in counts.most_common()))
    print("every token as written after every operation; nothing left at the end")


if __name__ == "__main__":
    main(int(sys.argv[1]))
