"""Prefixes shared by mapping the same pages into several slots; writers get a copy."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from tests.vattention.conftest import host_pool, in_child, small_fake_pool
from tests.vattention.mirror import Mirror, close, make_cache, rows
from trimtab.vattention.layout import committed_bytes
from trimtab.vattention.pages import Access, KVOutOfMemory
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV


@pytest.fixture(params=list(Layout))
def mirror(pool, request) -> Iterator[Mirror]:
    """Return the model of a new cache, on every backend and in both layouts."""
    kv = make_cache(pool(), layout=request.param, slots=5)
    yield Mirror(kv)
    close(kv)


def tokens_in(kv: VirtualKV, pages: int) -> int:
    """Return how many tokens fit into that many pages: 21 into one, or 10 in `mega`."""
    return pages * kv.page_bytes // kv.row_bytes


def with_60_tokens(pool: PagePool) -> tuple[Mirror, int]:
    """Return the model of a new cache, and a slot of it with 60 tokens."""
    mirror = Mirror(make_cache(pool))
    source = mirror.acquire()
    mirror.ensure({source: 60})
    return mirror, source


def access(kv: VirtualKV, slot: int) -> list[str]:
    return [row.access.name for row in kv._table.rows[slot]]


def test_whole_pages_are_shared_and_the_partial_one_is_copied(mirror):
    kv = mirror.kv
    source = mirror.acquire()
    mirror.ensure({source: tokens_in(kv, 5)})
    alone = kv.stats()
    fork = mirror.fork(source, tokens_in(kv, 3) + 2)
    mirror.check()
    both = kv.stats()
    assert rows(kv, both.committed - alone.committed) == 1
    assert rows(kv, both.shared_saving) == 3
    assert [row in kv._table.rows[source] for row in kv._table.rows[fork]] == [True] * 3 + [False]
    mirror.ensure({fork: 150, source: 160})
    mirror.check()
    assert rows(kv, kv.stats().shared_saving) == 3


def test_a_row_that_all_its_slots_leave_in_one_growth_is_given_back(pool):
    pages = pool()
    kv = make_cache(pool(budget=13 * 4 * pages.page_bytes))
    mirror = Mirror(kv)
    a = mirror.acquire()
    mirror.ensure({a: tokens_in(kv, 4) + 1})
    b, c = (mirror.fork(a, tokens_in(kv, 4) + 1) for _ in range(2))
    d = mirror.acquire()
    mirror.ensure({d: tokens_in(kv, 6)})
    for slot in (c, d):  # what they held is cached
        mirror.release(slot)
    for slot in (a, b):  # into the last row that they share with c
        mirror.truncate(slot, tokens_in(kv, 3) + 2)
    mirror.check()
    mirror.ensure({a: tokens_in(kv, 4), b: tokens_in(kv, 4)})  # reclaims all that c had
    mirror.check()
    close(kv)


@pytest.mark.parametrize("length", ["nothing", "one", "bound - 1", "bound", "bound + 1", "all"])
def test_forks_of_every_length_grow_apart(mirror, length):
    kv = mirror.kv
    bound = 4 * kv.page_bytes // kv.row_bytes  # of 85.3 tokens: the 86th lies in both pages
    source = mirror.acquire()
    mirror.ensure({source: 150})
    fork = mirror.fork(source, {"nothing": 0, "one": 1, "bound - 1": bound - 1, "bound": bound,
                                "bound + 1": bound + 1, "all": 150}[length])  # fmt: skip
    mirror.check()
    mirror.ensure({source: 151})
    mirror.ensure({fork: kv.length(fork) + 1})
    mirror.check()
    mirror.ensure({source: 200, fork: 200})
    mirror.check()


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_a_bound_between_two_tokens_needs_no_copy(pool, step):
    """With 16 tokens per page."""
    pages = pool()
    kv = make_cache(pages, kv_heads=1, head_dim=pages.page_bytes // 16 // 4)
    mirror = Mirror(kv)
    source = mirror.acquire()
    mirror.ensure({source: 48})
    before = kv.stats().committed
    fork = mirror.fork(source, 32 + step)
    mirror.check()
    assert rows(kv, kv.stats().committed - before) == (step != 0)
    assert rows(kv, kv.stats().shared_saving) == {-1: 1, 0: 2, 1: 2}[step]
    mirror.ensure({fork: 60, source: 60})
    mirror.check()
    close(kv)


def test_a_fork_of_a_fork_shares_with_both(mirror):
    kv = mirror.kv
    first = mirror.acquire()
    mirror.ensure({first: 100})
    second = mirror.fork(first, 90)
    mirror.ensure({second: 140})
    third = mirror.fork(second, 130)
    fourth = mirror.fork(third, 50)
    mirror.check()
    shared = [tokens * kv.row_bytes // kv.page_bytes for tokens in (90, 130, 50)]
    assert rows(kv, kv.stats().shared_saving) == sum(shared)
    mirror.ensure(dict.fromkeys((first, second, third, fourth), 180))
    mirror.check()
    for slot in (second, first, fourth):
        mirror.release(slot)
        mirror.poison()
        mirror.check()
        kv.trim()
        mirror.check()
    assert kv.stats().shared_saving == 0
    assert kv.stats().committed == committed_bytes([180], kv.geometry, kv.page_bytes)


def test_the_source_may_leave_before_the_fork(mirror):
    kv = mirror.kv
    source = mirror.acquire()
    mirror.ensure({source: 120})
    fork = mirror.fork(source, 110)
    mirror.release(source)
    mirror.check()
    again = mirror.acquire()
    mirror.ensure({again: 115})
    mirror.check()
    mirror.ensure({fork: 190})
    mirror.check()
    mirror.release(fork)
    mirror.release(again)
    kv.trim()
    assert kv.stats().committed == 0


def test_growing_again_after_cutting_into_a_shared_prefix_leaves_the_other_slot_alone(mirror):
    kv = mirror.kv
    source = mirror.acquire()
    mirror.ensure({source: 150})
    fork = mirror.fork(source, 150)
    saving = rows(kv, kv.stats().shared_saving)
    mirror.truncate(source, 70)
    mirror.ensure({source: 120})
    mirror.check()
    kept = 70 * kv.row_bytes // kv.page_bytes
    assert rows(kv, kv.stats().shared_saving) == kept < saving
    mirror.truncate(fork, 60)
    mirror.ensure({fork: 150, source: 150})
    mirror.check()
    assert rows(kv, kv.stats().shared_saving) == 60 * kv.row_bytes // kv.page_bytes


def test_a_shared_page_that_both_cut_is_copied_by_one_and_kept_by_the_other(mirror):
    kv = mirror.kv
    source = mirror.acquire()
    mirror.ensure({source: tokens_in(kv, 4)})
    fork = mirror.fork(source, tokens_in(kv, 4))
    mirror.truncate(source, tokens_in(kv, 3) - 2)
    mirror.truncate(fork, tokens_in(kv, 3) - 5)
    kv.trim()
    before = rows(kv, kv.stats().committed)
    mirror.ensure(dict.fromkeys((source, fork), tokens_in(kv, 3)))
    mirror.check()
    assert rows(kv, kv.stats().committed) == before + 1


def test_pages_shared_with_a_released_slot_are_taken_over_not_copied(pool):
    """There is no page left for a copy. A page holds 16 tokens here."""
    page = pool().page_bytes
    kv = make_cache(pool(budget=4 * 4 * page), kv_heads=1, head_dim=page // 64)
    mirror = Mirror(kv)
    source = mirror.acquire()
    mirror.ensure({source: 64})
    fork = mirror.fork(source, 48)
    mirror.release(source)
    mirror.truncate(fork, 5)
    pages = [page for row in kv._table.rows[fork] for page in row.pages]
    mirror.ensure({fork: 40})
    mirror.check()
    assert [page for row in kv._table.rows[fork] for page in row.pages] == pages
    mirror.ensure({fork: 64})
    mirror.check()
    assert kv.stats().committed == kv.pool.budget
    close(kv)


def test_a_copy_that_the_budget_does_not_hold_is_refused(pool):
    small = pool()
    kv = make_cache(pool(budget=4 * 4 * small.page_bytes))
    mirror = Mirror(kv)
    source = mirror.acquire()
    mirror.ensure({source: tokens_in(kv, 4)})
    with pytest.raises(KVOutOfMemory):
        mirror.fork(source, tokens_in(kv, 2) + 3)
    mirror.check()
    fork = mirror.fork(source, 0)
    mirror.release(fork)
    mirror.truncate(source, tokens_in(kv, 3))
    fork = mirror.fork(source, tokens_in(kv, 2) + 3)
    mirror.check()
    mirror.truncate(fork, 10)
    with pytest.raises(KVOutOfMemory) as refusal:
        mirror.ensure({fork: 30})
    assert [rows(kv, n) for n in (refusal.value.needed, refusal.value.reclaimable)] == [2, 1]
    mirror.check()
    close(kv)


def test_a_page_is_read_only_only_while_it_is_shared(mirror):
    kv = mirror.kv
    source = mirror.acquire()
    mirror.ensure({source: tokens_in(kv, 4)})
    assert access(kv, source) == ["write"] * 4
    fork = mirror.fork(source, tokens_in(kv, 2) + 1)
    assert access(kv, source) == ["read", "read", "write", "write"]
    assert access(kv, fork) == ["read", "read", "write"]
    mirror.release(source)
    kv.trim()
    mirror.truncate(fork, tokens_in(kv, 1) + 1)
    mirror.ensure({fork: tokens_in(kv, 3)})
    assert access(kv, fork) == ["read", "write", "write"]
    mirror.check()


@pytest.mark.parametrize("slept", [False, True])
def test_a_stray_write_to_a_shared_page_faults_in_every_slot_that_has_it(slept):
    mirror, source = with_60_tokens(host_pool())
    kv = mirror.kv
    fork = mirror.fork(source, 50)
    if slept:
        kv.sleep()
        kv.wake()
    prefixes = [kv.values[1][slot, 3] for slot in (source, fork)]
    tails = [kv.values[1][slot, 49] for slot in (source, fork)]
    for prefix, tail in zip(prefixes, tails, strict=True):
        assert in_child(prefix.sum) == 0
        assert in_child(prefix.fill_, 1.0) == -signal.SIGSEGV
        assert in_child(tail.mul_, 1.0) == 0
    del prefixes, tails, prefix, tail
    mirror.check()
    close(kv)


def test_a_fork_takes_the_slot_with_the_fewest_pages(mirror):
    slots = [mirror.acquire() for _ in range(4)]
    mirror.ensure(dict(zip(slots, (150, 100, 20, 150), strict=True)))
    for slot in slots[1:]:
        mirror.release(slot)
    assert mirror.fork(0, 70) == 4  # never used
    assert mirror.fork(0, 90) == 2
    mirror.check()
    assert mirror.acquire() == 3


def test_many_requests_with_one_prefix_need_one_prefix_and_their_tails(pool):
    kv = make_cache(pool(), layers=1, slots=64, max_len=500)
    mirror = Mirror(kv)
    slots = [mirror.acquire()]
    prefix, tail = tokens_in(kv, 20), 10
    mirror.ensure({slots[0]: prefix})
    slots += [mirror.fork(slots[0], prefix) for _ in range(63)]
    mirror.ensure(dict.fromkeys(slots, prefix + tail))
    mirror.check()
    # Each has a copy of the prefix's last page, which is not full, and one more for its tail.
    assert rows(kv, kv.stats().committed) == 19 + 64 * 2
    assert rows(kv, kv.stats().shared_saving) == 63 * 19
    close(kv)


def test_sharing_survives_sleep(mirror):
    kv = mirror.kv
    source = mirror.acquire()
    mirror.ensure({source: 150})
    fork = mirror.fork(source, 120)
    other = mirror.fork(fork, 60)
    mirror.truncate(source, 25)  # the longest slot with a page determines what is live in it
    mirror.ensure({other: 100})
    before = kv.stats()
    kv.trim()
    trimmed = kv.stats()
    allowed = [access(kv, slot) for slot in (source, fork, other)]
    assert all("read" in slot for slot in allowed)
    kv.sleep()
    kv.wake()
    mirror.check()
    after = kv.stats()
    for name in ("live", "committed", "mapped", "shared_saving", "handles"):
        assert getattr(after, name) == getattr(trimmed, name)
    assert after.shared_saving == before.shared_saving > 0
    assert [access(kv, slot) for slot in (source, fork, other)] == allowed
    mirror.ensure({source: 160, fork: 170, other: 180})
    mirror.check()


def test_sharing_waits_for_writes_in_progress_before_forbidding_them():
    pool = small_fake_pool()
    mirror, source = with_60_tokens(pool)
    pool._driver.calls.clear()
    mirror.fork(source, 50)
    names = [name for name, *_ in pool._driver.calls if name != "cuMemCreate"]
    assert names[:3] == ["fence", "wait", "cuMemSetAccess"]
    close(mirror.kv)


def test_waking_forbids_writes_only_after_its_own():
    pool = small_fake_pool()
    mirror, source = with_60_tokens(pool)
    kv = mirror.kv
    mirror.fork(source, 50)
    kv.sleep()
    pool._driver.calls.clear()
    kv.wake()
    calls = pool._driver.calls
    forbidding = calls.index(next(call for call in calls if call[-1] is Access.read))
    assert [name for name, *_ in calls[forbidding - 2 : forbidding]] == ["fence", "wait"]
    mirror.check()
    close(kv)


def test_a_page_is_replaced_only_after_it_was_copied():
    pool = small_fake_pool()
    mirror, source = with_60_tokens(pool)
    fork = mirror.fork(source, 60)
    mirror.truncate(fork, 10)
    pool._driver.calls.clear()
    mirror.ensure({fork: 12})
    names = [name for name, *_ in pool._driver.calls if name != "cuMemCreate"]
    assert names == ["fence", "wait", "cuMemUnmap", "cuMemMap", "cuMemSetAccess"] * 4
    mirror.check()
    close(mirror.kv)


def test_copies_preserve_every_bit(pool):
    """The fork copies the tokens after the first page; when it is cut, also those in that page."""
    kv = make_cache(pool(), dtype=torch.float16)
    source = kv.acquire()
    kv.ensure({source: 50})
    kv.keys[0][source, :50] = torch.nan
    kv.keys[0][source, [28, 49]] = -0.0
    bits = kv.keys[0][source, :50].view(torch.int16).clone()
    fork = kv.fork_prefix(source, 50)
    assert torch.equal(kv.keys[0][fork, :50].view(torch.int16), bits)
    kv.truncate(fork, 29)
    kv.ensure({fork: 30})
    assert kv._table.rows[fork][0] is not kv._table.rows[source][0]
    for slot, length in ((source, 50), (fork, 29)):
        assert torch.equal(kv.keys[0][slot, :length].view(torch.int16), bits[:length])
    close(kv)
