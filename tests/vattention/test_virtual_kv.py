"""The cache on pages of every backend. Sharing and failures are tested in other modules."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.vattention.conftest import PAGE, failing, host_pool, in_child, small_fake_pool
from tests.vattention.mirror import Mirror, close, counted, make_cache, rows
from trimtab.vattention import host
from trimtab.vattention.layout import committed_bytes
from trimtab.vattention.pages import KVOutOfMemory
from trimtab.vattention.settings import Layout
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels import reference
from trimtab_kernels.decode_attention import append_kv, decode_attention

UNUSED_ACCESS = host._UNUSED_ACCESS


@pytest.fixture(params=list(Layout))
def layout(request) -> Layout:
    return request.param


def test_tensors_have_the_shape_of_the_cache_and_share_nothing(make, layout):
    kv = make(layout=layout, layers=3, slots=2, max_len=30, kv_heads=2)
    assert len(kv.keys) == len(kv.values) == 3
    mirror = Mirror(kv)
    mirror.ensure({mirror.acquire(): 30, mirror.acquire(): 30})
    for tensor in (*kv.keys, *kv.values):
        assert tensor.shape == (2, 30, 2, kv.geometry.head_dim)
        assert (tensor.dtype, tensor.device) == (torch.float32, kv.pool.device)
    for number, tensor in enumerate((*kv.keys, *kv.values)):
        tensor[0], tensor[1] = number, -number
    del tensor
    for number, tensor in enumerate((*kv.keys, *kv.values)):
        assert (tensor[0] == number).all()
        assert (tensor[1] == -number).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_written_stays_in_place_while_the_cache_grows(make, layout, dtype):
    kv = make(layout=layout, dtype=dtype)
    addresses = [tensor.data_ptr() for tensor in (*kv.keys, *kv.values, kv.lengths)]
    mirror = Mirror(kv)
    first, second = mirror.acquire(), mirror.acquire()
    for lengths in ({first: 1}, {first: 7, second: 80}, {second: 81}, {first: 200, second: 150}):
        mirror.ensure(lengths)
        mirror.check()
    assert [t.data_ptr() for t in (*kv.keys, *kv.values, kv.lengths)] == addresses


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_committed_bytes_are_as_computed_around_every_page_bound(make, layout, step):
    kv = make(layout=layout)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    for index in range(1, 5):
        length = index * kv.page_bytes // kv.row_bytes + step
        mirror.ensure({slot: length})
        mirror.check()
        lengths = [length, 0, 0, 0]
        assert kv.stats().committed == committed_bytes(lengths, kv.geometry, kv.page_bytes)


def test_tokens_that_divide_a_page_and_tokens_larger_than_one(make, layout):
    page = make().page_bytes
    for head_dim, kv_heads, max_len in (
        (page // 16, 1, 33),
        (page // 4, 3, 9),
        (page // 4 + 1, 1, 9),
    ):
        kv = make(layout=layout, head_dim=head_dim, kv_heads=kv_heads, max_len=max_len, slots=2)
        mirror = Mirror(kv)
        slot, other = mirror.acquire(), mirror.acquire()
        for length in range(1, max_len + 1):
            mirror.ensure(
                {slot: length, other: max_len + 1 - length} if length == 1 else {slot: length}
            )
            expected = committed_bytes([length, max_len], kv.geometry, page)
            assert kv.stats().committed == expected
        mirror.check()
        mirror.release(other)
        fork = mirror.fork(slot, max_len - 1)
        mirror.check()
        mirror.ensure({fork: max_len})
        mirror.check()


def test_lengths_are_on_the_device_and_on_the_host(make):
    kv = make()
    a, b = kv.acquire(), kv.acquire()
    kv.ensure({a: 3, b: 40})
    assert (kv.length(a), kv.length(b)) == (3, 40)
    assert (kv.lengths.dtype, kv.lengths.device) == (torch.int32, kv.pool.device)
    assert kv.lengths.tolist() == [3, 40, 0, 0]
    kv.truncate(b, 2)
    kv.release(a)
    assert kv.lengths.tolist() == [0, 2, 0, 0]


def test_a_cache_made_under_inference_mode_grows_outside_of_it():
    with torch.inference_mode(), make_cache(host_pool()) as kv:
        slot = kv.acquire()
        with torch.inference_mode(False):
            kv.ensure({slot: 5})
            kv.keys[0][slot, :5] = 1
        kv.ensure({slot: 6})
        assert kv.lengths[slot] == 6


def test_addresses_beyond_the_machines_memory_cost_nothing_until_used():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with VirtualKV(80, 64, 128 * 1024, 8, 128, torch.bfloat16) as kv:
        assert kv.reserved_bytes > max(machine, 2 << 40)
        slot = kv.acquire()
        kv.ensure({slot: 3})
        kv.keys[79][slot, :3] = 2
        assert kv.stats().measured <= 2 * 160 * kv.page_bytes


def test_the_host_has_pages_of_64_kb_by_default():
    with VirtualKV(1, 1, 9, 1, 8, torch.float32) as kv:
        assert kv.page_bytes == 64 * 1024
    with VirtualKV(1, 1, 9, 1, 8, torch.float32, "mega", 8192, budget=5 * 8192) as kv:
        assert (kv.page_bytes, kv.pool.budget) == (8192, 5 * 8192)
    with pytest.raises(ValueError, match="device=meta; expected cpu or cuda"):
        VirtualKV(1, 1, 9, 1, 8, torch.float32, device="meta")
    with pytest.raises(ValueError, match="page_group=4096, budget=None; expected neither together"):
        VirtualKV(1, 1, 9, 1, 8, torch.float32, page_group=4096, pool=host_pool())
    with pytest.raises(ValueError, match="pool='host'; expected a PagePool"):
        VirtualKV(1, 1, 9, 1, 8, torch.float32, pool="host")
    with pytest.raises(ValueError, match="lookahead='no'; expected True or False"):
        VirtualKV(1, 1, 9, 1, 8, torch.float32, lookahead="no")


@pytest.mark.parametrize("layout", [None, *Layout])
def test_without_a_chosen_layout_the_pages_decide(pool, layout):
    """The first token of a model with 32 layers takes two pages of a GPU, not 64."""
    pages = pool()
    usual = Layout.slot if pages.backend == "host" else Layout.mega
    with VirtualKV(32, 1, 9, 1, 8, torch.float32, layout, pool=pages) as kv:
        assert kv.geometry.layout is (layout or usual)
        kv.ensure({kv.acquire(): 1})
        expected = 64 if kv.geometry.layout is Layout.slot else 2
        assert kv.stats().handles == expected


@pytest.mark.gpu
def test_a_gpu_has_pages_of_the_drivers_granularity():
    with VirtualKV(2, 2, 5000, 8, 128, torch.bfloat16, device="cuda") as kv:
        assert kv.page_bytes == kv.pool.granularity
        assert kv.geometry.layout is Layout.mega
        mirror = Mirror(kv)
        mirror.ensure({mirror.acquire(): 5000, mirror.acquire(): 1})
        mirror.check()
        assert kv.keys[0].is_cuda


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_reach_slots_more_than_two_to_the_31_numbers_away(device, layout):
    """Of 64 GiB of addresses, as many as 64 long texts may need, a few pages are used."""
    kv_heads, width, lengths = 8, 128, {1: 70, 63: 300}
    shape = 2, 64, 128 * 1024, kv_heads, width
    with VirtualKV(*shape, torch.bfloat16, layout, device=device) as kv:
        kv.acquire_all()
        kv.ensure(lengths)
        assert 63 * kv.keys[1].stride(0) > 2**31
        reach(kv, lengths)


def reach(kv: VirtualKV, lengths: dict[int, int]) -> None:
    """Append a token to slots and attend from it, and compare with copies of them."""
    keys, values, slots = kv.keys[1], kv.values[1], list(lengths)
    like = {"device": keys.device, "dtype": keys.dtype}
    for slot, length in lengths.items():
        keys[slot, : length - 1].normal_()
        values[slot, : length - 1].normal_()
    key, value = (torch.randn(64, 8, 128, **like) for _ in "kv")
    query = torch.randn(64, 16, 128, **like)
    append_kv(keys, values, key, value, kv.lengths)
    found = decode_attention(query, keys, values, kv.lengths, 0.1)
    longest = max(lengths.values())
    copies = [torch.zeros(len(slots), longest, 8, 128, dtype=torch.float64) for _ in "kv"]
    for copy, cache, token in zip(copies, (keys, values), (key, value), strict=True):
        for row, (slot, length) in enumerate(lengths.items()):
            copy[row, :length] = cache[slot, :length]
            assert torch.equal(cache[slot, length - 1], token[slot])
    expected = reference.decode_attention(
        query[slots].double().cpu(), *copies, kv.lengths[slots].cpu(), 0.1
    )
    torch.testing.assert_close(found[slots].double().cpu(), expected, rtol=2e-2, atol=2e-2)


# Slots


def test_all_slots_are_taken_at_once(make):
    kv = make(slots=3)
    taken = kv.acquire()
    kv.acquire_all()
    with pytest.raises(RuntimeError, match="all 3 slots are in use"):
        kv.acquire()
    kv.release(taken)
    assert kv.acquire() == taken


def test_slots_run_out_and_come_back(make):
    kv = make(slots=2)
    a, b = kv.acquire(), kv.acquire()
    assert {a, b} == {0, 1}
    for attempt in (kv.acquire, lambda: kv.fork_prefix(a, 0)):
        with pytest.raises(RuntimeError, match="all 2 slots are in use; release one"):
            attempt()
    kv.release(a)
    assert kv.acquire() == a


def test_a_released_slot_keeps_its_pages_and_the_fullest_is_taken_first(make):
    kv = make()
    mirror = Mirror(kv)
    slots = [mirror.acquire() for _ in range(4)]
    mirror.ensure(dict(zip(slots, (30, 190, 100, 1), strict=True)))
    for slot in slots:
        mirror.release(slot)
    before = counted(kv.pool.stats())
    assert kv.stats().cached == before.committed > 0
    assert [mirror.acquire() for _ in range(4)] == [1, 2, 0, 3]
    mirror.ensure({1: 190, 2: 100, 0: 30, 3: 1})
    assert counted(kv.pool.stats()) == before
    mirror.check()


def test_slots_not_in_use_are_named(make):
    kv = make()
    kv.acquire()
    calls = [
        lambda slot: kv.ensure({slot: 1}),
        lambda slot: kv.truncate(slot, 0),
        lambda slot: kv.fork_prefix(slot, 0),
        kv.release,
        kv.length,
    ]
    for slot in (1, 4, -1, "0"):
        for call in calls:
            with pytest.raises(ValueError, match=rf"slot {slot!r} is not in use, \[0\] are"):
                call(slot)
    kv.release(0)
    with pytest.raises(ValueError, match="slot 0 is not in use"):
        kv.release(0)


def test_lengths_that_cannot_be_are_refused_and_nothing_changes(make):
    kv = make(max_len=100)
    mirror = Mirror(kv)
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 50})
    with pytest.raises(ValueError, match="length 101 of slot 1; expected 0 to 100"):
        kv.ensure({a: 60, b: 101})
    with pytest.raises(ValueError, match="length 49 of slot 0, which has 50 tokens; use truncate"):
        kv.ensure({b: 1, a: 49})
    with pytest.raises(ValueError, match="length -1 of slot 1"):
        kv.ensure({b: -1})
    with pytest.raises(TypeError, match="length 2.0 of slot 1; expected an integer"):
        kv.ensure({b: 2.0})
    for call in (kv.truncate, kv.fork_prefix):
        with pytest.raises(ValueError, match="length 51 of slot 0; expected 0 to 50"):
            call(a, 51)
        with pytest.raises(ValueError, match="length -1 of slot 0"):
            call(a, -1)
    mirror.check()
    kv.ensure({})
    kv.ensure({a: 50})
    mirror.check()


def test_lengths_may_be_any_integers(make):
    kv = make()
    slot = kv.acquire()
    kv.ensure({slot: torch.tensor(5)})
    kv.ensure({slot: kv.lengths[slot] + 1})
    assert kv.length(slot) == 6
    assert type(kv.length(slot)) is int


# Memory


def test_truncated_pages_stay_until_trim(make, layout):
    kv = make(layout=layout)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    mirror.ensure({slot: 190})
    full = kv.stats().committed
    mirror.truncate(slot, 20)
    mirror.check()
    assert kv.stats().committed == full
    needed = committed_bytes([20], kv.geometry, kv.page_bytes)
    assert kv.stats().cached == full - needed
    assert kv.trim() == full - needed
    assert kv.stats().committed == needed
    assert kv.trim() == 0
    mirror.check()
    mirror.ensure({slot: 200})
    mirror.check()


def test_cached_pages_make_room_those_of_released_slots_first(make):
    """Of 10 rows, 3 are live, 2 lie beyond a length, and released slots have 3 and 2."""
    kv = make(budget_rows=10)
    mirror = Mirror(kv)
    live, tail, long, short = (mirror.acquire() for _ in range(4))
    mirror.ensure({live: 42, tail: 60, long: 60, short: 40})  # rows: 2, 3, 3, 2
    mirror.truncate(tail, 20)
    mirror.release(long)
    mirror.release(short)
    held = lambda: [len(kv._table.rows[slot]) for slot in (live, tail, long, short)]  # noqa: E731
    assert held() == [2, 3, 3, 2]
    for length, expected in ((60, [3, 3, 3, 1]), (80, [4, 3, 3, 0]), (100, [5, 3, 2, 0]),
                             (140, [7, 3, 0, 0]), (180, [9, 1, 0, 0])):  # fmt: skip
        mirror.ensure({live: length})
        assert held() == expected
        assert kv.stats().committed == kv.pool.budget
        mirror.check()
    with pytest.raises(KVOutOfMemory):
        mirror.ensure({live: 200})
    mirror.check()


def test_a_refusal_says_what_is_there_and_changes_nothing(make):
    kv = make(budget_rows=8)
    mirror = Mirror(kv)
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 20, b: 60})  # 1 and 3 rows
    mirror.truncate(b, 30)  # 1 is cached
    before, mapped = counted(kv.stats()), counted(kv.pool.stats())
    with pytest.raises(KVOutOfMemory) as refusal:
        mirror.ensure({a: 130, b: 60})  # 6 more for a; b reuses its cached row
    error = refusal.value
    assert [rows(kv, n) for n in (error.needed, error.free, error.reclaimable)] == [6, 4, 0]
    with pytest.raises(KVOutOfMemory) as refusal:
        mirror.ensure({a: 150})
    error = refusal.value
    assert [rows(kv, n) for n in (error.needed, error.free, error.reclaimable)] == [7, 4, 1]
    assert (counted(kv.stats()), counted(kv.pool.stats())) == (before, mapped)
    mirror.check()
    mirror.ensure({a: 120})
    mirror.check()


@pytest.mark.parametrize("cached", [False, True])
def test_a_machine_without_memory_acts_like_a_budget(cpu_pool, cached):
    kv = make_cache(cpu_pool())
    mirror = Mirror(kv)
    slot, other = mirror.acquire(), mirror.acquire()
    mirror.ensure({slot: 20, other: 20})
    if cached:
        mirror.release(other)
    with failing(kv.pool, "create", k=3, memory=True):
        if cached:
            mirror.ensure({slot: 60})
        else:
            with pytest.raises(KVOutOfMemory) as refusal:
                mirror.ensure({slot: 60})
            assert rows(kv, refusal.value.needed) == 2
    mirror.check()
    mirror.ensure({slot: 100})
    mirror.check()
    close(kv)


def test_caches_share_a_pool_and_its_budget(pool):
    small = pool()
    pages = pool(budget=6 * 4 * small.page_bytes)
    first, second = make_cache(pages), make_cache(pages)
    mirrors = Mirror(first), Mirror(second)
    slots = [mirror.acquire() for mirror in mirrors]
    mirrors[0].ensure({slots[0]: 80})
    with pytest.raises(KVOutOfMemory):
        mirrors[1].ensure({slots[1]: 80})
    mirrors[1].ensure({slots[1]: 40})
    mirrors[0].release(slots[0])
    first.trim()
    mirrors[1].ensure({slots[1]: 120})
    assert first.stats().committed == 0
    assert second.stats().committed == pages.stats().committed == pages.budget
    first.close()
    assert pages.stats().committed == pages.budget
    second.close()
    assert (pages.stats().committed, pages.stats().reserved) == (0, 0)


def test_stats_of_an_empty_cache_and_of_its_peak(make):
    kv = make()
    stats = kv.stats()
    assert (stats.live, stats.committed, stats.mapped, stats.growths) == (0, 0, 0, 0)
    assert stats.reserved == kv.reserved_bytes == kv.geometry.reserved_bytes(kv.page_bytes)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    mirror.ensure({slot: 60})
    mirror.ensure({slot: 61})  # in the same pages
    mirror.ensure({slot: 100})
    mirror.fork(slot, 0)  # no page is needed
    stats = kv.stats()
    assert stats.live == 100 * kv.geometry.token_bytes
    assert stats.wasted == stats.committed - stats.live
    mirror.release(slot)
    kv.trim()
    assert kv.stats().growths == 2
    assert kv.stats().peak_committed == stats.committed
    assert kv.stats().committed == 0


def test_ten_thousand_sequences_leave_nothing_behind(cpu_pool):
    kv = make_cache(cpu_pool(), layers=1)
    start = kv.pool.stats()
    for index in range(10_000):
        slot = kv.acquire()
        kv.ensure({slot: 1 + index % 50})
        kv.release(slot)
        if index % 4 == 0:
            kv.trim()
    kv.trim()
    assert kv.pool.stats() == start
    close(kv)


# What must not be touched


def test_what_lies_beyond_the_pages_of_a_slot_faults():
    kv = make_cache(host_pool())
    mirror = Mirror(kv)
    slot = mirror.acquire()
    mirror.ensure({slot: 20})
    row = kv.keys[1][slot]
    assert in_child(row[19].sum) == 0
    assert in_child(row[25].sum) == -signal.SIGSEGV
    mirror.ensure({slot: 200, mirror.acquire(): 200})
    over = torch.as_strided(row, (1,), (1,), row.storage_offset() + 199 * row.stride(0))
    assert in_child(over.sum) == 0
    tokens_to_the_guard = math.ceil(kv.geometry.page_rows(200, PAGE) * PAGE / kv.row_bytes)
    over = torch.as_strided(
        row, (1,), (1,), row.storage_offset() + tokens_to_the_guard * row.stride(0)
    )
    assert in_child(over.sum) == -signal.SIGSEGV
    del row, over
    close(kv)


def attention(kv: VirtualKV, slot: int) -> torch.Tensor:
    """Return the attention of a query of ones to a slot's live tokens."""
    length = kv.length(slot)
    keys, values = (t[1][slot, :length].transpose(0, 1).double() for t in (kv.keys, kv.values))
    query = torch.ones_like(keys[:, :1])
    return torch.nn.functional.scaled_dot_product_attention(query, keys / 1e4, values)


def test_poison_in_cached_pages_reaches_no_output(make):
    kv = make(budget_rows=12)
    mirror = Mirror(kv)
    a, b, c = (mirror.acquire() for _ in range(3))
    mirror.ensure({a: 60, b: 50, c: 70})
    expected = attention(kv, b)
    mirror.release(a)
    mirror.truncate(c, 10)
    mirror.poison()
    assert kv.keys[0][c, 10:].flatten()[:64].isnan().all()
    assert torch.equal(attention(kv, b), expected)
    assert attention(kv, c).isfinite().all()
    again = mirror.acquire()
    assert again == a
    mirror.ensure({again: 30, c: 12})  # onto poisoned pages
    mirror.check()
    mirror.poison()
    assert attention(kv, again).isfinite().all()
    assert torch.equal(attention(kv, b), expected)
    mirror.ensure({b: 180})  # takes the poisoned pages
    mirror.poison()
    mirror.check()


def use(kv: VirtualKV) -> list[Callable[[], object]]:
    return [
        kv.acquire, kv.trim, kv.sleep, lambda: kv.ensure({0: 2}), lambda: kv.truncate(0, 0),
        lambda: kv.release(0), lambda: kv.fork_prefix(0, 1), lambda: kv.length(0),
        lambda: kv.keys, lambda: kv.values,
    ]  # fmt: skip


def test_a_forked_child_may_use_nothing():
    kv = make_cache(host_pool())
    kv.ensure({kv.acquire(): 1})

    def child() -> None:
        for call in (*use(kv), kv.close, kv.wake):
            with pytest.raises(RuntimeError, match="belong to the process that made it"):
                call()

    assert in_child(child) == 0
    close(kv)


# The end


def test_closing_is_refused_while_others_hold_tensors():
    kv = make_cache(host_pool())
    mirror = Mirror(kv)
    slot = mirror.acquire()
    mirror.ensure({slot: 30})
    row, whole = kv.keys[1][slot, 3], kv.values[0]
    address = kv.keys[0].data_ptr()
    with pytest.raises(RuntimeError, match="2 tensors over the cache, or views of them, are alive"):
        kv.close()
    assert kv.keys[0].data_ptr() == address
    mirror.ensure({slot: 40})
    mirror.check()
    del whole
    with pytest.raises(RuntimeError, match="1 tensors over the cache"):
        kv.close()
    del row
    close(kv)
    kv.close()
    for call in (*use(kv), kv.wake, kv.stats):
        with pytest.raises(RuntimeError, match="the cache is closed"):
            call()


@pytest.mark.parametrize("state", ["open", "asleep", "not closed"])
def test_printing_all_of_a_tensor_does_not_crash(monkeypatch, state):
    monkeypatch.setattr(host, "_UNUSED_ACCESS", UNUSED_ACCESS)
    kv = make_cache(host_pool())
    slot = kv.acquire()
    kv.ensure({slot: 30})
    whole = kv.keys[0]
    whole[slot, :30] = 3
    if state == "asleep":
        kv.sleep()
    if state == "not closed":
        with pytest.raises(RuntimeError, match="1 tensors over the cache"):
            kv.close()
    assert "0., 0., 0." in str(whole)
    assert whole.amax() == (0 if state == "asleep" else 3)
    del whole
    close(kv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: value}, rf"{name}={re.escape(repr(value))}; expected a positive integer")
            for name in ("slots", "max_len")
            for value in (0, -1, 2.0, "2", True, None)
        ),
        ({"slots": 2**40}, r"slots=1099511627776 with max_len=200 take \d+ bytes of addresses"),
        ({"max_len": 10**30}, rf"max_len={10**30} take \d+ bytes of addresses; expected at most"),
    ],
)
def test_sizes_that_cannot_be(settings, message):
    pool = host_pool()
    with pytest.raises(ValueError, match=message):
        make_cache(pool, **settings)
    assert pool.stats().reserved == 0


@pytest.mark.parametrize("value", [0.5, 4096.0, "4096", True])
def test_pages_and_budgets_are_whole_numbers(value):
    for name, message in (("page_group", "pages of"), ("budget", "budget=")):
        with pytest.raises(ValueError, match=rf"{message} ?{re.escape(repr(value))}"):
            VirtualKV(1, 1, 9, 1, 8, torch.float32, **{name: value})


def test_numpys_numbers_are_sizes():
    with VirtualKV(1, np.int64(2), np.int32(9), 1, 8, torch.float32) as kv:
        kv.ensure({kv.acquire(): 9})
        assert type(kv.geometry.slots) is int


def test_leaving_the_with_closes_the_cache_and_its_own_pool():
    with VirtualKV(1, 2, 50, 1, 8, torch.float32) as kv:
        kv.ensure({kv.acquire(): 50})
        pool = kv.pool
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.stats()


def test_a_refusal_to_close_does_not_hide_an_error_in_the_with():
    pool = host_pool()
    with pytest.raises(KVOutOfMemory) as failure, make_cache(pool) as kv:
        held = kv.keys
        raise KVOutOfMemory(1, 0)
    assert "The cache was not closed: 2 tensors" in failure.value.__notes__[0]
    del held, failure
    close(kv)


# Sleep


def test_sleep_frees_all_memory_and_waking_restores_every_bit(make, layout):
    kv = make(layout=layout, dtype=torch.bfloat16)
    mirror = Mirror(kv)
    a, b, c, d = (mirror.acquire() for _ in range(4))
    mirror.ensure({a: 170, b: 33, c: 1, d: 30})
    mirror.release(d)
    mirror.truncate(b, 30)
    addresses = [tensor.data_ptr() for tensor in (*kv.keys, *kv.values)]
    kv.values[1][a, 7] = torch.nan
    bits = kv.values[1][a, :170].view(torch.int16).clone()
    kv.sleep()
    asleep = kv.stats()
    assert (asleep.committed, asleep.mapped, asleep.live, asleep.handles) == (0, 0, 0, 0)
    assert kv.pool.stats().committed == 0
    for call in use(kv):
        with pytest.raises(RuntimeError, match="the cache is asleep; wake it first"):
            call()
    kv.wake()
    assert torch.equal(kv.values[1][a, :170].view(torch.int16), bits)
    kv.values[1][a, 7] = mirror.tokens[a][7] + 3
    mirror.check()
    assert [tensor.data_ptr() for tensor in (*kv.keys, *kv.values)] == addresses
    with pytest.raises(RuntimeError, match="the cache is awake"):
        kv.wake()
    mirror.ensure({a: 200, c: 30})
    mirror.check()


def test_waking_without_memory_sleeps_on(pool):
    pages = pool(budget=4 * 4 * pool().page_bytes)
    kv, other = make_cache(pages), make_cache(pages)
    mirror = Mirror(kv)
    slot = mirror.acquire()
    mirror.ensure({slot: 60})
    kv.sleep()
    guest = other.acquire()
    other.ensure({guest: 40})
    for _ in range(2):
        with pytest.raises(KVOutOfMemory) as refusal:
            kv.wake()
        assert [rows(kv, refusal.value.needed), rows(kv, refusal.value.free)] == [3, 2]
    with pytest.raises(RuntimeError, match="asleep"):
        kv.acquire()
    other.release(guest)
    other.trim()
    other.close()
    kv.wake()
    mirror.check()
    close(kv)


def test_a_sleeping_cache_can_be_closed(make):
    kv = make()
    kv.ensure({kv.acquire(): 50})
    kv.sleep()
    kv.close()
    with pytest.raises(RuntimeError, match="the cache is closed"):
        kv.wake()


# Order of calls


def test_pages_are_unmapped_only_after_the_work_that_used_them():
    pool = small_fake_pool(budget=4 * 4 * PAGE)
    driver = pool._driver
    kv = make_cache(pool)
    mirror = Mirror(kv)
    a, b = mirror.acquire(), mirror.acquire()
    mirror.ensure({a: 60, b: 10})
    start = len(driver.calls)
    mirror.release(a)
    (fence,) = (number for name, number, *_ in driver.calls[start:] if name == "fence")
    assert not {"wait", "cuMemUnmap"} & {name for name, *_ in driver.calls[start:]}
    mirror.ensure({b: 30})
    calls = [call for call in driver.calls[start:] if call[0] != "cuMemGetInfo"]
    names = [name for name, *_ in calls]
    assert calls.index(("wait", fence)) < names.index("cuMemUnmap") < names.index("cuMemCreate")
    close(kv)
    driver.check_clean()


def test_nothing_in_use_is_unmapped_before_the_work_is_done():
    pool = small_fake_pool()
    kv = make_cache(pool)
    mirror = Mirror(kv)
    mirror.ensure({mirror.acquire(): 60})
    for operation in (kv.sleep, kv.close):
        pool._driver.calls.clear()
        operation()
        names = [name for name, *_ in pool._driver.calls]
        assert names.index("fence") < names.index("wait") < names.index("cuMemUnmap")
        if operation == kv.sleep:
            kv.wake()


def test_growth_creates_pages_and_maps_and_protects_every_plane_once():
    pool = small_fake_pool()
    kv = make_cache(pool)
    slot = kv.acquire()
    pool._driver.calls.clear()
    kv.ensure({slot: 60})  # 3 rows of 4 pages
    names = [name for name, *_ in pool._driver.calls]
    assert names == ["cuMemCreate"] * 12 + (["cuMemMap"] * 3 + ["cuMemSetAccess"]) * 4
    pool._driver.calls.clear()
    kv.ensure({slot: 63})
    assert pool._driver.calls == []
    close(kv)


def test_calls_from_several_threads_wait_for_each_other(make, monkeypatch):
    """Every thread is held up in the middle of what changes the lengths of all slots."""
    kv = make(slots=4)
    publish = kv._slots.publish

    def slow(lengths: dict[int, int]) -> None:
        before = list(kv._slots.lengths)
        time.sleep(0.01)
        assert kv._slots.lengths == before
        publish(lengths)

    monkeypatch.setattr(kv._slots, "publish", slow)

    def fill(length: int) -> tuple[int, int]:
        slot = kv.acquire()
        kv.ensure({slot: length})
        return slot, kv.length(slot)

    with ThreadPoolExecutor(4) as threads:
        filled = dict(threads.map(fill, [3, 40, 5, 70]))
    assert kv.lengths.tolist() == [filled[slot] for slot in range(4)]
    assert sorted(filled.values()) == [3, 5, 40, 70]
