"""What every pool of pages guarantees, on every backend."""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from unittest import mock

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.vattention.conftest import ON_CPU, PAGE, failing, in_child
from trimtab.vattention.pages import Access, KVOutOfMemory, Page, PageError, PoolStats, Reservation
from trimtab.vattention.pool import PagePool


def places(pool: PagePool, reservation: Reservation, count: int) -> list[int]:
    return [reservation.address + n * pool.page_bytes for n in range(count)]


def laid(
    pool: PagePool, count: int = 1, access: Access = Access.write
) -> tuple[Reservation, list[Page]]:
    """Reserve a range of pages, and map new pages at all of it."""
    reservation = pool.reserve(count * pool.page_bytes)
    pages = pool.create(places(pool, reservation, count))
    pool.map(reservation, 0, pages)
    pool.protect(reservation, 0, reservation.nbytes, access)
    return reservation, pages


def memory(pool: PagePool, reservation: Reservation) -> torch.Tensor:
    """Return the bytes of a range, one row per page."""
    count = reservation.nbytes // pool.page_bytes
    shape = [count, pool.page_bytes]
    return pool.tensor(reservation, 0, shape, [pool.page_bytes, 1], torch.uint8)


def fill(pool: PagePool, tensor: torch.Tensor, value: int | torch.Tensor) -> None:
    """Write, and wait until it is done: the next call may unmap."""
    tensor[:] = value
    pool.fence().wait()


def held(pool: PagePool) -> PoolStats:
    """Return the statistics without the GPU's count, which includes memory of others."""
    stats = pool.stats()
    return replace(stats, measured=0) if pool.device.type == "cuda" else stats


def give_back(pool: PagePool, reservation: Reservation, pages: list[Page]) -> None:
    pool.fence().wait()
    for offset in sorted(reservation.pages):
        pool.unmap(reservation, offset, pool.page_bytes)
    for page in pages:
        pool.release(page)
    pool.free(reservation)


class TestArguments:
    @pytest.mark.parametrize("page_bytes", [0, -PAGE, PAGE + 1, PAGE // 2])
    def test_size_of_a_page(self, pool, page_bytes):
        with pytest.raises(
            ValueError, match=rf"pages of {page_bytes} bytes; expected a positive mult"
        ):
            pool(page_bytes)

    def test_budget_below_a_page(self, pool):
        size = pool().page_bytes
        with pytest.raises(ValueError, match=f"budget={size - 1}; expected at least one page"):
            pool(budget=size - 1)

    @pytest.mark.parametrize("pages", [0, -1, 0.5])
    def test_size_of_a_reservation(self, pool, pages):
        made = pool()
        with pytest.raises(ValueError, match="expected whole pages"):
            made.reserve(int(pages * made.page_bytes))
        assert made.stats().reserved == 0

    @pytest.mark.parametrize(
        ("offset", "count"), [(0.5, 1), (-1, 1), (0, 4), (3, 1), (2, 2), (0, 0)]
    )
    def test_ranges_that_are_not_within_the_reservation(self, pool, offset, count):
        made = pool()
        reservation, pages = laid(made, 3)
        offset, nbytes = int(offset * made.page_bytes), count * made.page_bytes
        other = made.reserve(reservation.nbytes)
        for call in (
            lambda: made.map(other, offset, pages[:1] * count),
            lambda: made.protect(reservation, offset, nbytes, Access.read),
            lambda: made.unmap(reservation, offset, nbytes),
        ):
            before = held(made)
            with pytest.raises(ValueError, match=r"expected (whole pages|a range within)"):
                call()
            assert held(made) == before
        give_back(made, reservation, pages)

    def test_ranges_and_pages_of_another_pool_or_given_back(self, pool):
        made, other = pool(), pool()
        reservation, pages = laid(made)
        foreign, foreign_pages = laid(other)
        give_back(made, reservation, pages)
        kept = made.reserve(made.page_bytes)
        for stranger in (reservation, foreign):
            for call in (
                lambda r=stranger: made.free(r),
                lambda r=stranger: made.map(r, 0, []),
                lambda r=stranger: made.protect(r, 0, made.page_bytes, Access.read),
                lambda r=stranger: made.unmap(r, 0, made.page_bytes),
                lambda r=stranger: made.tensor(r, 0, [1], [1], torch.uint8),
            ):
                with pytest.raises(ValueError, match="not reserved in this pool"):
                    call()
        for stranger in (pages[0], foreign_pages[0]):
            for call in (
                lambda p=stranger: made.release(p),
                lambda p=stranger: made.map(kept, 0, [p]),
            ):
                with pytest.raises(ValueError, match="not of this pool, or was released"):
                    call()
        assert made.stats().committed == made.stats().mapped == 0
        assert other.stats().references == 2
        give_back(other, foreign, foreign_pages)

    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [
            (0, [5, PAGE], [PAGE, 1]),
            (1, [1 << 30], [1]),
            (-1, [1], [1]),
            (0, [2, 2], [1, -1]),
            (0, [-1, -1], [1, 1]),
            (1 << 40, [0], [1]),
        ],
    )
    def test_tensors_outside_the_reservation(self, cpu_pool, offset, shape, strides):
        made = cpu_pool()
        reservation = made.reserve(4 * PAGE)
        with pytest.raises(ValueError, match="does not lie within the 16384 bytes reserved"):
            made.tensor(reservation, offset, shape, strides, torch.uint8)
        made.free(reservation)

    def test_tensors_end_with_the_reservation_and_are_aligned(self, pool):
        made = pool()
        reservation = made.reserve(made.page_bytes)
        last = reservation.nbytes - 4
        assert made.tensor(reservation, last, [], [], torch.float32).shape == ()
        assert made.tensor(reservation, last, [1, 1], [9, 9], torch.float32).numel() == 1
        assert made.tensor(reservation, reservation.nbytes, [0], [1], torch.float32).numel() == 0
        with pytest.raises(ValueError, match="does not lie within"):
            made.tensor(reservation, last, [2], [1], torch.float32)
        with pytest.raises(ValueError, match=r"offset 2; expected a multiple of 4"):
            made.tensor(reservation, 2, [1], [1], torch.float32)
        with pytest.raises(ValueError, match=r"dtype=torch\.complex64"):
            made.tensor(reservation, 0, [1], [1], torch.complex64)
        made.free(reservation)


class TestBudget:
    def test_counts_whole_pages(self, pool):
        size = pool().page_bytes
        made = pool(budget=3 * size - 1)
        assert made.free_bytes == 2 * size
        pages = made.create([0, 0])
        assert made.free_bytes == 0
        with pytest.raises(KVOutOfMemory, match=rf"needs {size} bytes of pages: 0 are left"):
            made.create([0])
        made.release(pages.pop())
        assert made.free_bytes == size
        with pytest.raises(KVOutOfMemory) as error:
            made.create([0, 0, 0])
        assert (error.value.needed, error.value.free) == (3 * size, size)
        assert error.value.reclaimable == 0
        assert made.stats().handles == 1
        made.release(*made.create([0]))
        made.release(*pages)
        assert made.free_bytes == 2 * size

    def test_no_budget_is_no_limit(self, pool):
        made = pool()
        assert made.free_bytes is None
        assert made.stats().budget is None
        assert made.create([]) == []

    def test_pages_count_as_long_as_anything_refers_to_them(self, pool):
        size = pool().page_bytes
        made = pool(budget=size)
        reservation, (page,) = laid(made)
        made.release(page)
        assert made.free_bytes == 0
        made.unmap(reservation, 0, size)
        assert made.free_bytes == size
        made.free(reservation)


class TestReferences:
    def test_a_released_page_gives_its_memory_back(self, pool):
        made = pool()
        start = held(made)
        (page,) = made.create([0])
        assert made.stats().references == made.stats().handles == 1
        assert made.stats().committed == made.page_bytes
        made.release(page)
        assert held(made) == start
        with pytest.raises(ValueError, match="was released"):
            made.release(page)

    def test_a_mapping_is_a_reference_of_its_own(self, pool):
        made = pool()
        reservation, (page,) = laid(made)
        assert made.stats().references == 2
        made.release(page)
        with pytest.raises(ValueError, match="only its mappings refer to the page"):
            made.release(page)
        memory(made, reservation)[0, -1] = 7
        assert memory(made, reservation)[0, -1] == 7
        made.unmap(reservation, 0, reservation.nbytes)
        assert made.stats().handles == made.stats().references == 0
        made.free(reservation)

    def test_a_page_refused_by_the_system_stays_the_callers(self, pool):
        made = pool()
        (page,) = made.create([0])
        with failing(made, "destroy"), pytest.raises(PageError):
            made.release(page)
        assert made.stats().references == made.stats().handles == 1
        made.release(page)
        assert made.stats().handles == 0


class TestMapping:
    def test_pages_are_mapped_in_the_order_given(self, pool):
        made = pool()
        reservation, pages = laid(made, 4)
        rows = memory(made, reservation)
        fill(made, rows, torch.tensor([[1], [2], [3], [4]], dtype=torch.uint8))
        made.unmap(reservation, 0, reservation.nbytes)
        made.map(reservation, 0, [pages[2], pages[3], pages[1], pages[0]])
        made.protect(reservation, 0, reservation.nbytes, Access.read)
        assert rows.amin(1).tolist() == rows.amax(1).tolist() == [3, 4, 2, 1]
        del rows
        give_back(made, reservation, pages)

    def test_a_page_at_two_addresses_shows_the_same_bytes(self, pool):
        made = pool()
        reservation, (page,) = laid(made)
        other = made.reserve(3 * made.page_bytes)
        made.map(other, made.page_bytes, [page, page])
        made.protect(other, made.page_bytes, 2 * made.page_bytes, Access.write)
        memory(made, reservation)[0, 5] = 42
        shape = [2, made.page_bytes]
        rows = made.tensor(other, made.page_bytes, shape, [made.page_bytes, 1], torch.uint8)
        assert rows[:, 5].tolist() == [42, 42]
        rows[1, 6] = 43
        made.fence().wait()
        assert memory(made, reservation)[0, 5:7].tolist() == [42, 43]
        stats = made.stats()
        assert (stats.committed, stats.mapped) == (made.page_bytes, 3 * made.page_bytes)
        assert (stats.handles, stats.references) == (1, 4)
        del rows
        made.unmap(reservation, 0, made.page_bytes)
        made.release(page)
        assert made.stats().committed == made.page_bytes
        made.unmap(other, made.page_bytes, 2 * made.page_bytes)
        assert made.stats().committed == 0
        made.free(other)
        made.free(reservation)

    def test_what_is_mapped_is_not_mapped_over(self, pool):
        made = pool()
        reservation, pages = laid(made, 2)
        made.unmap(reservation, 0, made.page_bytes)
        fill(made, memory(made, reservation)[1], 9)
        before = held(made)
        with pytest.raises(ValueError, match=f"offset {made.page_bytes} is mapped already"):
            made.map(reservation, 0, [pages[0], pages[0]])
        assert held(made) == before
        assert memory(made, reservation)[1].min() == 9
        give_back(made, reservation, pages)

    @pytest.mark.parametrize("name", ["protect", "unmap"])
    def test_a_range_with_a_hole_is_refused_whole(self, pool, name):
        made = pool()
        reservation, pages = laid(made, 3)
        made.unmap(reservation, made.page_bytes, made.page_bytes)
        access = [Access.read] * (name == "protect")
        before = held(made)
        with pytest.raises(ValueError, match=f"nothing is mapped at offset {made.page_bytes}"):
            getattr(made, name)(reservation, 0, reservation.nbytes, *access)
        assert held(made) == before
        memory(made, reservation)[0] = memory(made, reservation)[2] = 1
        give_back(made, reservation, pages)

    def test_unmapped_pages_keep_their_bytes_while_referred_to(self, pool):
        made = pool()
        reservation, pages = laid(made, 2)
        fill(made, memory(made, reservation), torch.tensor([[5], [6]], dtype=torch.uint8))
        made.unmap(reservation, 0, reservation.nbytes)
        assert made.stats().committed == 2 * made.page_bytes
        made.map(reservation, made.page_bytes, pages[:1])
        made.protect(reservation, made.page_bytes, made.page_bytes, Access.read)
        assert memory(made, reservation)[1].tolist() == [5] * made.page_bytes
        give_back(made, reservation, pages)


class TestAccess:
    """In a child process, which the system kills for an access that is not allowed."""

    @pytest.mark.parametrize("access", ["unmapped", None, *Access])
    def test_what_is_not_allowed_faults(self, cpu_pool, access):
        made = cpu_pool()
        reservation, pages = laid(made, 3)
        made.unmap(reservation, PAGE, PAGE)
        if access != "unmapped":
            made.map(reservation, PAGE, pages[1:2])
        if isinstance(access, Access):
            made.protect(reservation, PAGE, PAGE, access)
        row = made.tensor(reservation, PAGE, [PAGE], [1], torch.uint8)
        reads = access in (Access.read, Access.write)
        assert in_child(row[-1].item) == (0 if reads else -signal.SIGSEGV)
        writes = access is Access.write
        assert in_child(row[:1].fill_, 1) == (0 if writes else -signal.SIGSEGV)
        memory(made, reservation)[::2].fill_(1)
        del row
        give_back(made, reservation, pages)

    def test_access_is_taken_back(self, cpu_pool):
        made = cpu_pool()
        reservation, pages = laid(made, 2)
        rows = memory(made, reservation)
        rows.fill_(8)
        made.protect(reservation, 0, PAGE, Access.read)
        assert in_child(rows[0].fill_, 1) == -signal.SIGSEGV
        assert in_child(rows[0].sum) == 0
        assert in_child(rows[1].fill_, 8) == 0
        made.protect(reservation, 0, PAGE, Access.write)
        assert in_child(rows[0].fill_, 8) == 0
        assert rows.min() == 8
        del rows
        give_back(made, reservation, pages)

    def test_addresses_unmapped_or_only_reserved_are_not_given_to_others(self, cpu_pool):
        """No second reservation, nor any other mapping, lands in the first."""
        made = cpu_pool()
        first, pages = laid(made, 4)
        made.unmap(first, PAGE, 2 * PAGE)
        others = [made.reserve(PAGE) for _ in range(20)]
        taken = range(first.address, first.address + first.nbytes)
        assert not any(other.address in taken for other in others)
        for other in others:
            made.free(other)
        give_back(made, first, pages)


class TestFailures:
    @pytest.mark.parametrize("k", [1, 2, 3])
    @pytest.mark.parametrize("memory", [False, True])
    def test_create_makes_all_or_none(self, pool, k, memory):
        made = pool()
        start = held(made)
        error = KVOutOfMemory if memory else PageError
        with failing(made, "create", k, memory), pytest.raises(error) as caught:
            made.create([0, 0, 0])
        assert held(made) == start
        if memory and made.backend == "host":
            size = made.page_bytes
            assert (caught.value.needed, caught.value.free) == (3 * size, (k - 1) * size)
        pages = made.create([0, 0, 0])
        assert made.stats().handles == 3
        for page in pages:
            made.release(page)
        assert held(made) == start

    def test_a_page_that_cannot_be_destroyed_does_not_keep_the_others(self, pool):
        made = pool()
        with failing(made, "create", 4), failing(made, "destroy", 2), pytest.raises(PageError):
            made.create([0] * 4)
        assert made.stats().handles == 0
        if made.backend == "host":
            assert made.stats().measured == made.page_bytes

    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_map_maps_all_or_none(self, pool, k):
        """The mapped neighbours of the range stay as they were."""
        made = pool()
        size = made.page_bytes
        reservation, pages = laid(made, 6)
        fill(made, memory(made, reservation), 3)
        made.unmap(reservation, size, 4 * size)
        before = held(made)
        # Backwards, so that the kernel merges no two of them into one mapping.
        backwards = pages[4:0:-1]
        with failing(made, "map", k), pytest.raises(PageError):
            made.map(reservation, size, backwards)
        assert held(made) == before
        assert sorted(reservation.pages) == [0, 5 * size]
        rows = memory(made, reservation)
        assert rows[[0, 5]].min() == 3
        if not rows.is_cuda:
            assert in_child(rows[1, 0].item) == -signal.SIGSEGV
        made.map(reservation, size, backwards)
        made.protect(reservation, size, 4 * size, Access.write)
        assert rows.min() == rows.max() == 3
        del rows
        give_back(made, reservation, pages)

    @pytest.mark.parametrize("call", ["unmap", "protect", "free", "reserve"])
    def test_a_call_that_the_system_refuses_changes_nothing(self, pool, call):
        made = pool()
        reservation, pages = laid(made, 2)
        memory(made, reservation)[:] = 4
        empty = made.reserve(made.page_bytes)
        calls = {
            "unmap": lambda: made.unmap(reservation, 0, reservation.nbytes),
            "protect": lambda: made.protect(reservation, 0, reservation.nbytes, Access.read),
            "free": lambda: made.free(empty),
            "reserve": lambda: made.reserve(made.page_bytes),
        }
        before = held(made)
        with failing(made, call), pytest.raises(PageError) as error:
            calls[call]()
        assert error.value.call in str(error.value)
        assert held(made) == before
        rows = memory(made, reservation)
        rows += 1
        assert rows.min() == rows.max() == 5
        del rows
        made.free(empty)
        give_back(made, reservation, pages)

    def test_unmapping_destroys_the_pages_that_it_can(self, pool):
        made = pool()
        reservation, pages = laid(made, 3)
        for page in pages:
            made.release(page)
        with failing(made, "destroy", 2), pytest.raises(PageError):
            made.unmap(reservation, 0, reservation.nbytes)
        assert reservation.pages == {}
        assert made.stats().handles == made.stats().references == 1
        made.free(reservation)


class TestLifetime:
    def test_a_range_in_use_is_not_freed(self, pool):
        made = pool()
        reservation, pages = laid(made)
        with pytest.raises(RuntimeError, match="1 pages are mapped there and 0 tensors"):
            made.free(reservation)
        tensor = memory(made, reservation)
        view = tensor[0, 8:].view(torch.float32)
        made.unmap(reservation, 0, reservation.nbytes)
        del tensor
        with pytest.raises(RuntimeError, match="0 pages are mapped there and 1 tensors"):
            made.free(reservation)
        other = made.tensor(reservation, 0, [1], [1], torch.uint8)
        with pytest.raises(RuntimeError, match="and 2 tensors over it are alive"):
            made.free(reservation)
        del view, other
        made.free(reservation)
        assert made.stats().reserved == 0
        made.release(*pages)

    def test_refused_tensors_do_not_count(self, pool):
        made = pool()
        reservation = made.reserve(made.page_bytes)
        kept = []
        for dtype in (torch.complex64, torch.quint8):
            with pytest.raises(ValueError, match="dtype") as refusal:
                made.tensor(reservation, 0, [1], [1], dtype)
            kept.append(refusal.value)
        assert reservation.tensors == 0
        made.free(reservation)

    def test_a_pool_is_closed_when_nothing_is_reserved(self, pool):
        with pool() as made:
            reservation, pages = laid(made, 2)
            with pytest.raises(RuntimeError, match="1 ranges of addresses are still reserved"):
                made.close()
            fill(made, memory(made, reservation), 1)
            made.unmap(reservation, 0, reservation.nbytes)
            made.free(reservation)
            assert made.stats().handles == 2
        for call in (
            lambda: made.reserve(made.page_bytes),
            lambda: made.create([0]),
            lambda: made.release(pages[0]),
            made.stats,
        ):
            with pytest.raises(RuntimeError, match="the pool is closed; make another"):
                call()
        made.close()

    def test_tensors_keep_the_pool_that_is_dropped(self, cpu_pool):
        made = cpu_pool()
        reservation, pages = laid(made)
        rows = memory(made, reservation)
        rows[:] = 6
        del made, reservation, pages
        gc.collect()
        assert rows.min() == rows.max() == 6

    def test_a_fence_can_be_waited_for(self, pool):
        made = pool()
        reservation, pages = laid(made)
        memory(made, reservation).fill_(1)
        fence = made.fence()
        fence.wait()
        fence.wait()
        give_back(made, reservation, pages)

    def test_10_000_cycles_return_to_the_start(self, pool):
        made = pool()
        reservation = made.reserve(2 * made.page_bytes)

        def cycle(n: int) -> None:
            at = n % 2 * made.page_bytes
            (page,) = made.create([reservation.address + at])
            made.map(reservation, at, [page])
            made.protect(reservation, at, made.page_bytes, Access.write)
            if n % 100 == 0:
                fill(made, memory(made, reservation)[n % 2, ::1000], 1)
            made.unmap(reservation, at, made.page_bytes)
            made.release(page)

        cycle(0)
        start = held(made)
        for n in range(10_000):
            cycle(n)
        assert held(made) == start
        assert start.committed == start.handles == start.mapped == 0
        made.free(reservation)


def at_once(threads: int, call: Callable[[], object]) -> list[object]:
    """Return what a call returns or raises in each of several threads."""
    start = threading.Barrier(threads)

    def answer(_: int) -> object:
        start.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(answer, range(threads)))


def slow(pool: PagePool, name: str) -> AbstractContextManager[object]:
    """Give other threads time to run before the system is called."""
    original = getattr(pool, name)

    def called(*arguments: object) -> object:
        time.sleep(5e-3)
        return original(*arguments)

    return mock.patch.object(pool, name, called)


class TestProcessAndThreads:
    def test_a_forked_child_is_refused(self, pool):
        made = pool()
        reservation, pages = laid(made)
        size = made.page_bytes
        calls = [
            lambda: made.reserve(size),
            lambda: made.free(reservation),
            lambda: made.create([0]),
            lambda: made.release(pages[0]),
            lambda: made.map(reservation, 0, pages),
            lambda: made.protect(reservation, 0, size, Access.read),
            lambda: made.unmap(reservation, 0, size),
            lambda: made.tensor(reservation, 0, [1], [1], torch.uint8),
            made.stats,
            made.close,
        ]

        def try_all() -> None:
            for call in calls:
                with pytest.raises(RuntimeError, match="belong to the process that made it"):
                    call()

        assert in_child(try_all) == 0
        give_back(made, reservation, pages)

    def test_a_forked_child_does_not_wait_for_a_lock_that_its_parent_held(self, cpu_pool):
        made = cpu_pool()
        reservation = made.reserve(PAGE)
        tensors = [made.tensor(reservation, 0, [1], [1], torch.uint8)]
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with made._lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()

        def drop() -> None:
            tensors.clear()
            with pytest.raises(RuntimeError, match="belong to the process"):
                made.stats()

        status = in_child(drop)
        done.set()
        thread.join()
        assert status == 0
        assert reservation.tensors == 1

    def test_threads_take_turns(self, pool):
        """What a thread has checked still holds when it acts, however long the system takes."""
        size = pool().page_bytes
        made = pool(budget=3 * size)
        reservation = made.reserve(size)

        with slow(made, "_create"):
            answers = at_once(6, lambda: made.create([0]))
        pages = [page for created in answers if isinstance(created, list) for page in created]
        refused = [answer for answer in answers if isinstance(answer, KVOutOfMemory)]
        assert (len(pages), len(refused)) == (3, 3)

        with slow(made, "_map"):
            answers = at_once(4, lambda: made.map(reservation, 0, pages[:1]))
        assert answers.count(None) == 1
        assert made.stats().references == 4

        with slow(made, "_unmap"):
            answers = at_once(4, lambda: made.unmap(reservation, 0, size))
        assert answers.count(None) == 1

        for page in pages:
            with slow(made, "_destroy"):
                answers = at_once(4, lambda page=page: made.release(page))
            assert answers.count(None) == 1
        with slow(made, "_free"):
            answers = at_once(4, lambda: made.free(reservation))
        assert answers.count(None) == 1
        stats = made.stats()
        assert stats.handles == stats.references == stats.committed == stats.reserved == 0

    def test_threads_work_at_the_same_time(self, pool):
        """Four threads compete for the pages of three; each finds what it wrote."""
        size = pool().page_bytes
        made = pool(budget=6 * size)
        reservation = made.reserve(4 * 2 * size)
        numbers = iter(range(4))

        def work() -> int:
            thread = next(numbers)
            offset = 2 * size * thread
            done = 0
            while done < 20:
                try:
                    pages = made.create([reservation.address + offset] * 2)
                except KVOutOfMemory:
                    time.sleep(1e-4)
                    continue
                made.map(reservation, offset, pages)
                made.protect(reservation, offset, 2 * size, Access.write)
                rows = made.tensor(reservation, offset, [2, size], [size, 1], torch.uint8)
                fill(made, rows[:, :8], thread)
                assert made.stats().committed <= 6 * size
                assert rows[:, :8].eq(thread).all()
                del rows
                made.unmap(reservation, offset, 2 * size)
                for page in pages:
                    made.release(page)
                done += 1
            return done

        assert at_once(4, work) == [20] * 4
        assert reservation.tensors == 0
        made.free(reservation)
        stats = made.stats()
        assert stats.handles == stats.references == stats.committed == 0
        made.close()


@dataclass(eq=False)
class Held:
    """A page in the model: the value of all its bytes, if known."""

    page: Page
    content: int | None
    own: bool = True
    mappings: int = 0


@dataclass(eq=False)
class Range:
    reservation: Reservation
    mapped: dict[int, tuple[Held, Access | None]] = field(default_factory=dict)
    tensors: list[torch.Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.reservation.nbytes // PAGE


BUDGET = 12
index = st.integers(-1, 5)
count = st.integers(0, 4)


class Machine(RuleBasedStateMachine):
    """A pool, compared with a model of dictionaries and integers."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.pool = ON_CPU[backend](budget=BUDGET * PAGE)
        # New pages of the host are zero; those of a GPU hold what was there before.
        self.fresh = 0 if backend == "host" else None
        self.pages: list[Held] = []
        self.ranges: list[Range] = []

    def some_range(self, data: st.DataObject) -> Range:
        return self.ranges[data.draw(st.integers(0, len(self.ranges) - 1), "range")]

    def some_page(self, data: st.DataObject) -> Held:
        return self.pages[data.draw(st.integers(0, len(self.pages) - 1), "page")]

    def forget_if_unused(self, held: Held) -> None:
        if not held.own and not held.mappings:
            self.pages.remove(held)
            with pytest.raises(ValueError, match="was released"):
                self.pool.release(held.page)

    @precondition(lambda self: len(self.ranges) < 3)
    @rule(size=st.integers(1, 4))
    def reserve(self, size):
        self.ranges.append(Range(self.pool.reserve(size * PAGE)))

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def free(self, data):
        chosen = self.some_range(data)
        if chosen.mapped or chosen.tensors:
            with pytest.raises(RuntimeError, match="in use"):
                self.pool.free(chosen.reservation)
        else:
            self.pool.free(chosen.reservation)
            self.ranges.remove(chosen)
            with pytest.raises(ValueError, match="not reserved"):
                self.pool.free(chosen.reservation)

    @rule(data=st.data(), count=st.integers(0, 5), fail=st.sampled_from([0, 0, 0, 1, 3]))
    def create(self, data, count, fail):
        addresses = [
            chosen.reservation.address + n * PAGE
            for chosen in self.ranges
            for n in range(chosen.size)
        ]
        places = st.sampled_from([*addresses, 0, -PAGE, PAGE + 1, 1 << 60])
        chosen = data.draw(st.lists(places, min_size=count, max_size=count), "places")
        left = BUDGET - len(self.pages)
        if count > left:
            with pytest.raises(KVOutOfMemory) as error:
                self.pool.create(chosen)
            assert (error.value.needed, error.value.free) == (count * PAGE, left * PAGE)
        elif 0 < fail <= count:
            with failing(self.pool, "create", fail), pytest.raises(PageError):
                self.pool.create(chosen)
        else:
            self.pages += [Held(page, self.fresh) for page in self.pool.create(chosen)]

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def release(self, data):
        held = self.some_page(data)
        if not held.own:
            with pytest.raises(ValueError, match="only its mappings"):
                self.pool.release(held.page)
        else:
            self.pool.release(held.page)
            held.own = False
            self.forget_if_unused(held)

    @precondition(lambda self: self.ranges and self.pages)
    @rule(data=st.data(), at=index, count=count, fail=st.sampled_from([False, False, True]))
    def map(self, data, at, count, fail):
        chosen = self.some_range(data)
        laid = [self.some_page(data) for _ in range(count)]
        pages = [held.page for held in laid]
        wanted = range(at, at + count)
        possible = wanted and wanted[0] >= 0 and wanted[-1] < chosen.size
        if not possible or any(n in chosen.mapped for n in wanted):
            with pytest.raises(ValueError, match=r"expected|mapped already"):
                self.pool.map(chosen.reservation, at * PAGE, pages)
        elif fail:
            with failing(self.pool, "map"), pytest.raises(PageError):
                self.pool.map(chosen.reservation, at * PAGE, pages)
        else:
            self.pool.map(chosen.reservation, at * PAGE, pages)
            for n, held in zip(wanted, laid, strict=True):
                chosen.mapped[n] = held, None
                held.mappings += 1

    @precondition(lambda self: self.ranges)
    @rule(data=st.data(), at=index, count=count, access=st.sampled_from(Access))
    def protect(self, data, at, count, access):
        chosen = self.some_range(data)
        wanted = range(at, at + count)
        arguments = chosen.reservation, at * PAGE, count * PAGE, access
        if not wanted or not all(n in chosen.mapped for n in wanted):
            with pytest.raises(ValueError, match=r"expected|nothing is mapped"):
                self.pool.protect(*arguments)
        else:
            self.pool.protect(*arguments)
            chosen.mapped.update({n: (chosen.mapped[n][0], access) for n in wanted})

    @precondition(lambda self: self.ranges)
    @rule(data=st.data(), at=index, count=count)
    def unmap(self, data, at, count):
        chosen = self.some_range(data)
        wanted = range(at, at + count)
        if not wanted or not all(n in chosen.mapped for n in wanted):
            with pytest.raises(ValueError, match=r"expected|nothing is mapped"):
                self.pool.unmap(chosen.reservation, at * PAGE, count * PAGE)
        else:
            self.pool.unmap(chosen.reservation, at * PAGE, count * PAGE)
            gone = [chosen.mapped.pop(n)[0] for n in wanted]
            for held in gone:
                held.mappings -= 1
            for held in dict.fromkeys(gone):
                self.forget_if_unused(held)

    @precondition(lambda self: any(self.allowing(Access.write)))
    @rule(data=st.data(), value=st.integers(1, 255))
    def write(self, data, value):
        writable = self.allowing(Access.write)
        chosen, n, held = writable[data.draw(st.integers(0, len(writable) - 1), "where")]
        self.pool.tensor(chosen.reservation, n * PAGE, [PAGE], [1], torch.uint8).fill_(value)
        held.content = value

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def tensor(self, data):
        chosen = self.some_range(data)
        shape, strides = [chosen.size, PAGE // 2], [PAGE // 2, 1]
        tensor = self.pool.tensor(chosen.reservation, 0, shape, strides, torch.bfloat16)
        # Only a view is kept, not the tensor itself.
        chosen.tensors.append(tensor.T)

    @precondition(lambda self: any(chosen.tensors for chosen in self.ranges))
    @rule()
    def drop(self):
        next(chosen for chosen in self.ranges if chosen.tensors).tensors.pop()

    def allowing(self, *accesses: Access) -> list[tuple[Range, int, Held]]:
        return [
            (chosen, n, held)
            for chosen in self.ranges
            for n, (held, access) in chosen.mapped.items()
            if access in accesses
        ]

    @invariant()
    def counts_agree(self):
        mapped = sum(len(chosen.mapped) for chosen in self.ranges)
        assert self.pool.stats() == PoolStats(
            budget=BUDGET * PAGE,
            committed=len(self.pages) * PAGE,
            mapped=mapped * PAGE,
            reserved=sum(chosen.size for chosen in self.ranges) * PAGE,
            handles=len(self.pages),
            references=sum(held.own for held in self.pages) + mapped,
            measured=len(self.pages) * PAGE,
        )
        for chosen in self.ranges:
            assert chosen.reservation.tensors == len(chosen.tensors)

    @invariant()
    def contents_agree(self):
        for chosen, n, held in self.allowing(Access.read, Access.write):
            if held.content is not None:
                found = ctypes.string_at(chosen.reservation.address + n * PAGE, PAGE)
                assert found == bytes([held.content]) * PAGE

    def teardown(self):
        for chosen in self.ranges:
            chosen.tensors.clear()
            for n in chosen.mapped:
                self.pool.unmap(chosen.reservation, n * PAGE, PAGE)
            self.pool.free(chosen.reservation)
        for held in self.pages:
            if held.own:
                self.pool.release(held.page)
        assert self.pool.stats() == PoolStats(BUDGET * PAGE, 0, 0, 0, 0, 0, 0)
        self.pool.close()


@pytest.mark.parametrize("backend", list(ON_CPU))
def test_any_sequence_of_calls_is_what_the_model_says(backend):
    run_state_machine_as_test(
        lambda: Machine(backend),
        settings=settings(max_examples=60, stateful_step_count=60),
    )
