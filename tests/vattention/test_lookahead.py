"""Rows prepared ahead: created and mapped by a thread, taken by growth, given back unused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from tests.vattention.conftest import PAGE, failing, host_pool, small_fake_pool
from tests.vattention.mirror import Mirror, close, make_cache, rows
from trimtab.vattention.pages import KVOutOfMemory, PageError
from trimtab.vattention.virtual_kv import VirtualKV


def settle(kv: VirtualKV) -> None:
    wait(kv._ahead._rows.values())


def test_the_next_row_is_there_before_it_is_needed(make):
    kv = make(lookahead=True)
    mirror = Mirror(kv)
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 42, b: 21})  # 2 and 1 rows, all but full
    settle(kv)
    assert rows(kv, kv.stats().committed) == 5
    assert rows(kv, kv.stats().mapped) == 5
    assert rows(kv, kv.stats().cached) == 2
    prepared = {page for row in kv._ahead._rows.values() for page in row.result().pages}
    mirror.ensure({a: 60, b: 30})
    used = {page for slot in (a, b) for page in kv._table.rows[slot][-1].pages}
    assert used == prepared
    mirror.check()


def test_a_row_is_prepared_near_the_end_of_the_last_one_unless_the_slot_is_full(make):
    kv = make(lookahead=True)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    # An eighth of the 21.3 tokens of a page is 2.7. The last row of a slot holds 8 of its 200.
    expected = {0: 0, 18: 0, 19: 1, 20: 1, 22: 0, 39: 0, 40: 1, 200: 0}
    for length, prepared in expected.items():
        mirror.ensure({slot: length})
        settle(kv)
        assert rows(kv, kv.stats().cached) == prepared, length
    mirror.check()


def test_prepared_rows_make_room_before_a_refusal(make):
    kv = make(budget_rows=6, lookahead=True)
    mirror = Mirror(kv)
    a, b, c = (mirror.acquire() for _ in range(3))
    mirror.ensure({a: 21, b: 21})
    settle(kv)
    assert rows(kv, kv.stats().cached) == 2
    with pytest.raises(KVOutOfMemory) as refusal:
        mirror.ensure({c: 110})
    error = refusal.value
    assert [rows(kv, n) for n in (error.needed, error.free, error.reclaimable)] == [6, 2, 2]
    mirror.ensure({c: 80})
    mirror.check()
    assert kv.stats().cached == 0


def test_a_refusal_counts_rows_being_prepared(monkeypatch):
    kv = make_cache(host_pool(budget=6 * 4 * PAGE), lookahead=True)
    mirror = Mirror(kv)
    slot, create, go_on = mirror.acquire(), kv.pool._create, threading.Event()

    def slow(place: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            go_on.wait(20)
        return create(place)

    monkeypatch.setattr(kv.pool, "_create", slow)
    mirror.ensure({slot: 21})
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    with pytest.raises(KVOutOfMemory) as refusal:
        mirror.ensure({slot: 150})
    assert all(row.done() for row in kv._ahead._rows.values())
    assert rows(kv, refusal.value.free + refusal.value.reclaimable) == 5
    timer.join()
    close(kv)


def test_a_thread_that_fails_prepares_nothing(cpu_pool):
    kv = make_cache(cpu_pool(), lookahead=True)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    with failing(kv.pool, "create", k=6):  # the slot's first row takes four
        mirror.ensure({slot: 21})
        settle(kv)
    assert kv.stats().cached == 0
    mirror.check()
    mirror.ensure({slot: 50})
    mirror.check()
    close(kv)


def test_after_trim_and_sleep_no_row_is_being_prepared(make):
    kv = make(lookahead=True)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    for length in range(21, 170, 21):  # each near the end of a row
        mirror.ensure({slot: length})
        assert kv._ahead._rows
        kv.trim()
        assert kv.pool.stats().committed == kv.stats().committed
        assert kv.stats().cached == 0
    kv.sleep()
    assert kv.pool.stats().committed == 0
    kv.wake()
    mirror.check()


def test_growth_onto_a_prepared_row_makes_no_call():
    pool = small_fake_pool()
    kv = make_cache(pool, lookahead=True)
    slot = kv.acquire()
    kv.ensure({slot: 21})
    settle(kv)
    pool._driver.calls.clear()
    kv.ensure({slot: 30})
    assert pool._driver.calls == []
    assert rows(kv, kv.stats().committed) == 2
    kv.ensure({slot: 42})
    settle(kv)
    pool._driver.calls.clear()
    kv.ensure({slot: 80})  # the row that is prepared, and another
    names = [name for name, *_ in pool._driver.calls]
    assert names == ["cuMemCreate"] * 4 + ["cuMemMap", "cuMemSetAccess"] * 4
    close(kv)
    pool._driver.check_clean()


@pytest.mark.parametrize("call", ["create", "map", "protect"])
def test_a_row_that_cannot_be_made_leaves_nothing(cpu_pool, call):
    """The thread makes up to four calls of a kind, one for every plane."""
    for k in range(1, 5):
        kv = make_cache(cpu_pool(), lookahead=True)
        mirror = Mirror(kv)
        slot = mirror.acquire()
        mirror.ensure({slot: 10})
        with failing(kv.pool, call, k):
            mirror.ensure({slot: 21})
            settle(kv)
        assert kv.stats().cached == 0
        mirror.check()
        mirror.ensure({slot: 50})
        mirror.check()
        close(kv)


@pytest.mark.parametrize("call", ["create", "map", "protect"])
def test_a_growth_that_fails_after_taking_a_prepared_row_is_undone(cpu_pool, call):
    for k in range(1, 50):
        kv = make_cache(cpu_pool(), lookahead=True)
        mirror = Mirror(kv)
        slot, other = mirror.acquire(), mirror.acquire()
        mirror.ensure({slot: 21, other: 40})
        settle(kv)
        failed = True
        with failing(kv.pool, call, k):
            try:
                mirror.ensure({slot: 70, other: 100})
                failed = False
            except PageError:
                pass
        mirror.check()
        mirror.ensure({slot: 70, other: 100})
        mirror.check()
        close(kv)
        if not failed:
            assert k > 1
            return
    pytest.fail("the growth never succeeded")


def test_a_slot_with_a_prepared_row_takes_a_shared_prefix(make):
    kv = make(lookahead=True)
    mirror = Mirror(kv)
    source, slot = mirror.acquire(), mirror.acquire()
    mirror.ensure({source: 100, slot: 21})  # the next row of `slot` is prepared
    settle(kv)
    mirror.release(slot)
    assert mirror.fork(source, 64) == 2  # the emptiest slot
    mirror.fork(source, 64)
    assert mirror.fork(source, 64) == slot  # three whole rows, where one was prepared
    mirror.check()
    mirror.ensure({slot: 90})
    mirror.check()


def prepared_elsewhere(kv: VirtualKV, mirror: Mirror) -> int:
    """Return a slot without rows whose third row is prepared: another slot took over the rest."""
    slot = mirror.acquire()
    mirror.ensure({slot: 42})
    settle(kv)
    fork = mirror.fork(slot, 42)
    mirror.truncate(slot, 0)
    mirror.truncate(fork, 10)
    mirror.ensure({fork: 12})
    assert not kv._table.rows[slot]
    assert slot in kv._ahead._rows
    mirror.check()
    return slot


def test_a_row_prepared_for_another_place_is_used_all_the_same(make):
    kv = make(lookahead=True)
    mirror = Mirror(kv)
    slot = prepared_elsewhere(kv, mirror)
    prepared = kv._ahead._rows[slot].result()
    mirror.ensure({slot: 90})
    assert kv._table.rows[slot][0] is prepared
    mirror.check()


def test_a_row_that_cannot_be_unmapped_stays_prepared(cpu_pool):
    for k in range(1, 5):
        kv = make_cache(cpu_pool(), lookahead=True)
        mirror = Mirror(kv)
        slot = prepared_elsewhere(kv, mirror)
        for operation in (lambda: mirror.ensure({slot: 90}), kv.trim):  # noqa: B023
            before = kv.pool.stats()
            with failing(kv.pool, "unmap", k), pytest.raises(PageError):
                operation()
            assert kv.pool.stats() == before
            mirror.check()
        kv.trim()
        assert kv.stats().cached == 0
        mirror.ensure({slot: 90})
        mirror.check()
        close(kv)


def test_a_shared_page_is_copied_onto_the_prepared_row(make):
    kv = make(lookahead=True)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    mirror.ensure({slot: 64})  # three rows, all but full
    settle(kv)
    mirror.fork(slot, 64)
    mirror.truncate(slot, 30)
    mirror.ensure({slot: 90})  # writes to the second row, which is shared, and needs two more
    mirror.check()


def repeatable(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return what does a piece of work again: on a GPU, a captured graph."""
    if device.type != "cuda":
        return work
    work()  # what loads at its first call does so here
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def grow_beside(kv: VirtualKV, rounds: int = 200) -> None:
    """Work on one slot again and again while another grows, is released and is trimmed."""
    slot = kv.acquire()
    kv.ensure({slot: 30})
    parts = [tensor[slot, :30] for tensor in (*kv.keys, *kv.values)]

    def work() -> None:
        for part in parts:
            part.add_(1)

    again = repeatable(work, kv.pool.device)
    for part in parts:
        part.zero_()
    with ThreadPoolExecutor(1) as thread:
        done = [thread.submit(again) for _ in range(rounds)]
        for number in range(8):
            other, filled = kv.acquire(), 0
            for length in range(19, 120, 10 + number):
                kv.ensure({other: length})
                kv.values[0][other, filled:length] = number
                filled = length
            assert (kv.values[0][other, :filled] == number).all()
            kv.release(other)
            kv.trim()
        for one in done:
            one.result()
    for part in parts:
        assert (part == rounds).all()
    kv.release(slot)


def test_pages_come_and_go_while_another_slot_is_worked_on(make):
    grow_beside(make(lookahead=True))
