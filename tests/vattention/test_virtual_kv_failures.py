"""If any system call of any operation fails, all slots stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest

from tests.vattention.conftest import failing, small_fake_pool
from tests.vattention.mirror import Mirror, close, make_cache
from trimtab.vattention.pages import KVOutOfMemory, PageError
from trimtab.vattention.settings import Layout

Operation = Callable[[], object]


def growth(mirror: Mirror) -> Operation:
    """Grow two slots by several rows, one within its last page."""
    a, b, c = (mirror.acquire() for _ in range(3))
    mirror.ensure({a: 20, b: 50, c: 30})
    return lambda: mirror.ensure({a: 90, b: 110, c: 31})


def copy_on_write(mirror: Mirror) -> Operation:
    """Write in two of three slots that share a page, one of which also grows."""
    a = mirror.acquire()
    mirror.ensure({a: 70})
    b, c = mirror.fork(a, 70), mirror.fork(a, 25)
    for slot, length in ((a, 45), (b, 30), (c, 10)):
        mirror.truncate(slot, length)
    mirror.kv.trim()
    return lambda: mirror.ensure({a: 50, b: 100, c: 10})


def sole_ownership(mirror: Mirror) -> Operation:
    """Write to a page that a released slot shared."""
    a = mirror.acquire()
    mirror.ensure({a: 70})
    b = mirror.fork(a, 70)
    mirror.release(a)
    mirror.truncate(b, 10)
    return lambda: mirror.ensure({b: 90})


def fork(mirror: Mirror) -> Operation:
    """Share a prefix that is partly shared already."""
    a = mirror.acquire()
    mirror.ensure({a: 110})
    mirror.fork(a, 50)
    return lambda: mirror.fork(a, 100)


def reclaiming(mirror: Mirror) -> Operation:
    """Grow into pages that other slots gave up, as the budget is nearly exhausted."""
    a, b, c = (mirror.acquire() for _ in range(3))
    mirror.ensure({a: 20, b: 150, c: 140})
    mirror.truncate(b, 100)
    mirror.release(c)
    return lambda: mirror.ensure({a: 190})


def trim(mirror: Mirror) -> Operation:
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 120, b: 70})
    mirror.fork(b, 40)
    mirror.truncate(a, 30)
    mirror.release(b)
    return mirror.kv.trim


def sleep(mirror: Mirror) -> Operation:
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 120, b: 70})
    mirror.fork(a, 70)
    return mirror.kv.sleep


OPERATIONS = {
    growth: {"create", "map", "protect"},
    copy_on_write: {"create", "map", "protect", "unmap"},
    sole_ownership: {"create", "map", "protect", "unmap"},
    fork: {"create", "map", "protect"},
    reclaiming: {"create", "map", "protect", "unmap"},
    trim: {"unmap"},
    sleep: {"unmap"},
}
CASES = [(operation, call) for operation, calls in OPERATIONS.items() for call in sorted(calls)]


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(
    ("prepare", "call"), CASES, ids=[f"{prepare.__name__}-{call}" for prepare, call in CASES]
)
def test_a_failure_at_any_call_leaves_every_slot_as_it_was(cpu_pool, prepare, call, layout):
    """For every k, the k-th call of a kind fails."""
    planes = 2 if layout is Layout.mega else 4
    for k in range(1, 500):
        pool = cpu_pool(budget=(16 if layout is Layout.slot else 32) * planes * 4096)
        kv = make_cache(pool, layout=layout)
        mirror = Mirror(kv)
        operation = prepare(mirror)
        mirror.check()
        before = kv.stats()
        failed = True
        with failing(pool, call, k):
            try:
                operation()
                failed = False
            except PageError:
                pass
        if failed:
            mirror.check()
            if prepare not in (reclaiming, sole_ownership):  # these may drop cached pages
                after = kv.stats()
                assert (after.committed, after.mapped) == (before.committed, before.mapped)
            operation()
        if prepare is sleep:
            kv.wake()
        mirror.check()
        # Only shared pages are read-only: every slot can still write where it grows.
        mirror.ensure({slot: length + 1 for slot, length in mirror.lengths.items()})
        mirror.check()
        close(kv)
        if not failed:
            assert k > 1, f"no call of {call}"
            return
    pytest.fail("the operation never succeeded")


@pytest.mark.parametrize("call", ["create", "map", "protect"])
def test_a_cache_that_cannot_wake_sleeps_on_whatever_failed(cpu_pool, call):
    for k in range(1, 200):
        kv = make_cache(cpu_pool())
        mirror = Mirror(kv)
        a = mirror.acquire()
        mirror.ensure({a: 60})
        mirror.fork(a, 50)
        kv.sleep()
        failed = True
        with failing(kv.pool, call, k):
            try:
                kv.wake()
                failed = False
            except PageError:
                pass
        if failed:
            assert kv.pool.stats().committed == 0
            with pytest.raises(RuntimeError, match="asleep"):
                kv.acquire()
            kv.wake()
        mirror.check()
        close(kv)
        if not failed:
            assert k > 1
            return
    pytest.fail("the cache never woke")


@pytest.mark.parametrize("prepare", [growth, copy_on_write, fork])
def test_nothing_is_undone_while_a_copy_is_in_progress(prepare, monkeypatch):
    """Publishing the lengths fails last, when the copies have been submitted."""
    pool = small_fake_pool()
    kv = make_cache(pool)
    mirror = Mirror(kv)
    operation = prepare(mirror)
    mirror.check()
    before = kv.stats()
    with monkeypatch.context() as patched:
        patched.setattr(kv._slots, "publish", mock.Mock(side_effect=RuntimeError("no device")))
        pool._driver.calls.clear()
        with pytest.raises(RuntimeError, match="no device"):
            operation()
    names = [name for name, *_ in pool._driver.calls]
    if prepare is fork:
        last = max(index for index, name in enumerate(names) if name == "cuMemMap")
        assert names[last:][:5] == ["cuMemMap", "cuMemSetAccess", "fence", "wait", "cuMemUnmap"]
    assert kv.stats() == before
    mirror.check()
    pool._driver.calls.clear()
    operation()
    assert names.count("wait") == 2 * pool._driver.counts()["wait"]
    mirror.check()
    close(kv)


def test_if_memory_runs_out_half_way_what_was_taken_is_given_back(cpu_pool):
    for k in range(1, 13):
        kv = make_cache(cpu_pool())
        mirror = Mirror(kv)
        a = mirror.acquire()
        mirror.ensure({a: 10})
        before = kv.stats()
        with failing(kv.pool, "create", k, memory=True), pytest.raises(KVOutOfMemory) as refusal:
            mirror.ensure({a: 75})  # 3 rows of 4 pages
        assert refusal.value.needed == 12 * kv.page_bytes
        if kv.pool.backend == "host":
            assert refusal.value.free == (k - 1) * kv.page_bytes
        assert kv.stats() == before
        mirror.check()
        close(kv)


def test_a_page_that_cannot_be_destroyed_does_not_lose_others(cpu_pool):
    kv = make_cache(cpu_pool())
    mirror = Mirror(kv)
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 60, b: 60})
    mirror.release(a)
    with failing(kv.pool, "destroy", 2), pytest.raises(PageError):
        kv.trim()
    assert kv.pool.stats().mapped == kv.stats().mapped == kv.stats().committed
    assert kv.pool.stats().committed == kv.stats().committed + kv.page_bytes  # that one
    mirror.ensure({mirror.acquire(): 60})
    assert kv.lengths.tolist() == [60, 60, 0, 0]
    kv.close()
    assert kv.pool.stats().mapped == 0


def test_a_close_that_fails_can_be_repeated(cpu_pool):
    kv = make_cache(cpu_pool())
    mirror = Mirror(kv)
    mirror.ensure({mirror.acquire(): 60})
    with failing(kv.pool, "unmap", 3), pytest.raises(PageError):
        kv.close()
    close(kv)
