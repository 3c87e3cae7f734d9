"""Pages of GPU memory: the calls to the driver, and their effects.

Tests with `make_pool` run on `FakeDriver`, whose memory is the host's, and with ``-m gpu`` on the
driver of a GPU.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.vattention.conftest import in_child
from tests.vattention.fake_driver import GRANULARITY, FakeDriver, fake_pool
from trimtab.vattention.cuda import CudaPool
from trimtab.vattention.pages import Access, KVOutOfMemory, Page, PageError, Reservation

PAGE = GRANULARITY

MakePool = Callable[..., CudaPool]


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def make_pool(request: pytest.FixtureRequest) -> Iterator[MakePool]:
    """Return a function that makes pools. At the end of a test everything must be given back."""
    pools: list[CudaPool] = []

    def make(page_bytes: int | None = None, budget: int | None = None) -> CudaPool:
        driver = FakeDriver() if request.param == "fake" else None
        pools.append(CudaPool(page_bytes, budget, driver=driver))
        return pools[-1]

    yield make
    for pool in pools:
        stats = pool.stats()
        assert (stats.reserved, stats.mapped, stats.handles) == (0, 0, 0)
        if request.param == "fake":
            driver_of(pool).check_clean()


def driver_of(pool: CudaPool) -> FakeDriver:
    assert isinstance(pool._driver, FakeDriver)
    return pool._driver


def put(
    pool: CudaPool, reservation: Reservation, offset: int, n: int, access: Access = Access.write
) -> list[Page]:
    """Map `n` new pages, to which only the mapping then refers."""
    places = [reservation.address + offset + i * pool.page_bytes for i in range(n)]
    pages = pool.create(places)
    pool.map(reservation, offset, pages)
    for page in pages:
        pool.release(page)
    pool.protect(reservation, offset, n * pool.page_bytes, access)
    return pages


def floats(pool: CudaPool, reservation: Reservation, offset: int, n: int) -> Tensor:
    return pool.tensor(reservation, offset, (n,), (1,), torch.float32)


def clear(pool: CudaPool, *reservations: Reservation) -> None:
    """Unmap and free, once the work of the device is done."""
    pool.fence().wait()
    for reservation in reservations:
        for offset in sorted(reservation.pages):
            pool.unmap(reservation, offset, pool.page_bytes)
        pool.free(reservation)


def test_the_calls_from_reserving_to_closing():
    pool = fake_pool()
    driver = driver_of(pool)
    assert driver.calls == [("cuMemGetInfo",)]
    driver.calls.clear()
    reservation = pool.reserve(8 * PAGE)
    at = reservation.address
    pages = pool.create([at, at])
    pool.map(reservation, 3 * PAGE, pages)
    pool.protect(reservation, 3 * PAGE, 2 * PAGE, Access.read)
    pool.protect(reservation, 4 * PAGE, PAGE, Access.write)
    pool.protect(reservation, 3 * PAGE, PAGE, Access.write)
    pool.release(pages[0])
    pool.fence().wait()
    pool.unmap(reservation, 3 * PAGE, 2 * PAGE)
    pool.release(pages[1])
    pool.free(reservation)
    pool.close()
    first, second = (page.handle for page in pages)
    assert first != second
    assert driver.calls == [
        ("cuMemAddressReserve", 8 * PAGE),
        ("cuMemCreate", PAGE),
        ("cuMemCreate", PAGE),
        ("cuMemMap", at + 3 * PAGE, PAGE, first),
        ("cuMemMap", at + 4 * PAGE, PAGE, second),
        ("cuMemSetAccess", at + 3 * PAGE, 2 * PAGE, Access.read),
        ("cuMemSetAccess", at + 4 * PAGE, PAGE, Access.write),
        ("cuMemSetAccess", at + 3 * PAGE, PAGE, Access.write),
        ("fence", 1),
        ("wait", 1),
        ("cuMemUnmap", at + 3 * PAGE, 2 * PAGE),
        ("cuMemRelease", first),
        ("cuMemRelease", second),
        ("cuMemAddressFree", at, 8 * PAGE),
    ]
    driver.check_clean()


def test_a_page_is_as_large_as_the_granularity_by_default():
    assert fake_pool(granularity=64 << 10, page_bytes=128 << 10).page_bytes == 128 << 10
    pool = CudaPool(driver=FakeDriver(granularity=64 << 10))
    assert (pool.page_bytes, pool.granularity) == (64 << 10, 64 << 10)


@pytest.mark.parametrize("page_bytes", [0, -PAGE, PAGE // 2, PAGE + 4096])
def test_a_page_is_of_whole_granules(page_bytes):
    with pytest.raises(ValueError, match=f"pages of {page_bytes} bytes.*{PAGE}.*cuda"):
        fake_pool(page_bytes)


def test_pages_of_several_granules_are_mapped_whole():
    pool = fake_pool(3 * PAGE)
    driver = driver_of(pool)
    reservation = pool.reserve(6 * PAGE)
    put(pool, reservation, 3 * PAGE, 1)
    assert ("cuMemCreate", 3 * PAGE) in driver.calls
    assert driver.mappings[reservation.address + 3 * PAGE].nbytes == 3 * PAGE
    clear(pool, reservation)
    driver.check_clean()


def life(pool: CudaPool) -> list[Callable[[], object]]:
    """Return the steps of a pool's life, with one page mapped at two addresses."""
    held: dict[str, Reservation] = {}
    pages: list[Page] = []

    def reserve(name: str, n: int) -> None:
        held[name] = pool.reserve(n * PAGE)

    return [
        lambda: reserve("first", 8),
        lambda: reserve("second", 4),
        lambda: pages.extend(pool.create([held["first"].address] * 4)),
        lambda: pool.map(held["first"], 2 * PAGE, pages),
        lambda: pool.protect(held["first"], 2 * PAGE, 4 * PAGE, Access.write),
        lambda: pool.map(held["second"], 0, pages[2:]),
        lambda: pool.protect(held["second"], 0, 2 * PAGE, Access.read),
        lambda: pool.unmap(held["first"], 3 * PAGE, 2 * PAGE),
        lambda: pool.unmap(held["first"], 2 * PAGE, PAGE),
        lambda: pool.unmap(held["first"], 5 * PAGE, PAGE),
        lambda: pool.free(held["first"]),
        lambda: pool.unmap(held["second"], 0, 2 * PAGE),
        *(lambda i=i: pool.release(pages[i]) for i in range(4)),
        lambda: pool.free(held["second"]),
    ]


def count_calls() -> dict[str, int]:
    pool = fake_pool()
    for step in life(pool):
        step()
    counts = driver_of(pool).counts()
    del counts["cuMemGetInfo"]
    return dict(counts)


def state(pool: CudaPool) -> object:
    driver = driver_of(pool)
    mapped = {at: (one.nbytes, one.handle, one.access) for at, one in driver.mappings.items()}
    live = {handle: one.released for handle, one in driver.allocations.items()}
    held = [(one.address, {at: page.handle for at, page in one.pages.items()})
            for one in pool._reservations]  # fmt: skip
    return mapped, live, dict(driver.ranges), sorted(held), pool.stats()


FAILURES = [(call, k) for call, n in count_calls().items() for k in range(1, n + 1)]


def test_every_kind_of_call_is_among_the_failures():
    assert {call for call, _ in FAILURES} == {
        "cuMemAddressReserve", "cuMemAddressFree", "cuMemCreate", "cuMemRelease", "cuMemMap",
        "cuMemUnmap", "cuMemSetAccess",
    }  # fmt: skip


@pytest.mark.parametrize(("call", "k"), FAILURES)
def test_a_call_that_fails_leaves_everything_as_it_was_and_can_be_made_again(call, k):
    pool = fake_pool()
    driver = driver_of(pool)
    driver.fail(call, k)
    failures = []
    for step in life(pool):
        before = state(pool)
        try:
            step()
        except PageError as error:
            failures.append(error.call)
            unchanged = state(pool) == before
            step()
    assert failures == [call]
    assert unchanged
    driver.check_clean()


def test_a_failed_map_unmaps_exactly_what_was_mapped():
    pool = fake_pool()
    driver = driver_of(pool)
    reservation = pool.reserve(8 * PAGE)
    pages = pool.create([reservation.address] * 4)
    for k, undone in ((1, []), (4, [("cuMemUnmap", reservation.address + PAGE, 3 * PAGE)])):
        driver.calls.clear()
        driver.fail("cuMemMap", k)
        with pytest.raises(PageError, match="cuMemMap"):
            pool.map(reservation, PAGE, pages)
        assert [call for call in driver.calls if call[0] == "cuMemUnmap"] == undone
        assert all(page.references == 1 for page in pages)


def test_out_of_memory_says_how_much_is_left_and_takes_nothing():
    pool = fake_pool(memory=3 * PAGE)
    driver = driver_of(pool)
    kept = pool.create([0, 0])
    with pytest.raises(KVOutOfMemory) as caught:
        pool.create([0, 0])
    assert (caught.value.needed, caught.value.free) == (2 * PAGE, PAGE)
    assert driver.used_memory == pool.stats().committed == 2 * PAGE
    (last,) = pool.create([0])
    for page in (*kept, last):
        pool.release(page)
    pool.close()
    driver.check_clean()


def test_what_pytorch_holds_unused_is_taken_before_memory_is_refused():
    """Of four pages PyTorch has three, and uses one."""
    pool = fake_pool(memory=4 * PAGE)
    driver = driver_of(pool)
    driver.allocate(3 * PAGE, cached=2 * PAGE)
    driver.calls.clear()
    pages = pool.create([0])
    assert driver.calls == [("cuMemCreate", PAGE)]
    pages += pool.create([0, 0])
    assert driver.counts() == {"cuMemCreate": 4, "empty allocator": 1}
    assert driver.allocator_memory() == PAGE
    driver.calls.clear()
    with pytest.raises(KVOutOfMemory) as caught:
        pool.create([0])
    assert (caught.value.needed, caught.value.free) == (PAGE, 0)
    assert driver.counts() == {"cuMemCreate": 2, "empty allocator": 1, "cuMemGetInfo": 1}
    for page in pages:
        pool.release(page)
    pool.close()


def test_only_a_lack_of_memory_is_out_of_memory():
    pool = fake_pool()
    driver_of(pool).fail("cuMemCreate")
    with pytest.raises(PageError, match="cuMemCreate: CUDA_ERROR_UNKNOWN"):
        pool.create([0])
    assert not driver_of(pool).counts()["empty allocator"]
    driver_of(pool).fail("cuMemMap", code="CUDA_ERROR_OUT_OF_MEMORY")
    reservation = pool.reserve(PAGE)
    with pytest.raises(PageError, match="cuMemMap"):
        pool.map(reservation, 0, pool.create([0]))


def test_the_driver_counts_for_the_device_since_the_pool_was_made():
    driver = FakeDriver()
    driver.create(4 * PAGE)
    pool = CudaPool(driver=driver)
    assert pool.stats().measured == 0
    pages = pool.create([0, 0])
    assert pool.stats().measured == pool.stats().committed == 2 * PAGE
    other = driver.create(PAGE)
    assert pool.stats().measured == 3 * PAGE
    driver.release(other)
    driver.allocate(7 * PAGE, cached=PAGE)
    assert pool.stats().measured == 2 * PAGE
    driver.empty_allocator()
    assert pool.stats().measured == 2 * PAGE
    pool.release(pages[0])
    assert pool.stats().measured == pool.stats().committed == PAGE


def test_closing_releases_what_is_still_held():
    pool = fake_pool()
    reservation = pool.reserve(PAGE)
    pool.create([reservation.address])
    pool.free(reservation)
    pool.close()
    driver_of(pool).check_clean()


def test_a_pool_that_is_dropped_gives_everything_back_after_the_devices_work():
    pool = fake_pool()
    driver = driver_of(pool)
    first, second = pool.reserve(8 * PAGE), pool.reserve(2 * PAGE)
    pages = put(pool, first, PAGE, 3)
    pool.map(second, 0, pages[:1])
    pool.create([0])
    driver.calls.clear()
    del pool, first, second, pages
    gc.collect()
    driver.check_clean()
    assert driver.calls[0] == ("cuCtxSynchronize",)


def test_a_tensor_keeps_a_dropped_pool():
    pool = fake_pool()
    driver = driver_of(pool)
    reservation = pool.reserve(PAGE)
    put(pool, reservation, 0, 1)
    tensor = floats(pool, reservation, 0, 8)
    del pool, reservation
    gc.collect()
    assert tensor.fill_(2.0).sum() == 16
    del tensor
    gc.collect()
    driver.check_clean()


def test_a_forked_child_that_drops_the_pool_calls_nothing():
    pools = [fake_pool()]
    driver, dropped = driver_of(pools[0]), weakref.ref(pools[0])
    reservation = pools[0].reserve(PAGE)
    put(pools[0], reservation, 0, 1)
    calls = len(driver.calls)

    def drop() -> None:
        pools.clear()
        gc.collect()
        assert dropped() is None
        assert len(driver.calls) == calls

    assert in_child(drop) == 0
    clear(pools[0], reservation)
    driver.check_clean()


SETUP = """
import atexit
atexit.register(lambda: print(tensor.sum().item()))  # the first to be registered runs last
import torch
from tests.vattention.fake_driver import FakeDriver
from trimtab.vattention.cuda import CudaPool
from trimtab.vattention.pages import Access
pool = CudaPool(driver=FakeDriver() if {fake} else None)
reservation = pool.reserve(2 * pool.page_bytes)
pool.map(reservation, 0, pool.create([reservation.address]))
pool.protect(reservation, 0, pool.page_bytes, Access.write)
tensor = pool.tensor(reservation, 0, (8,), (1,), torch.float32)
tensor.fill_(3.0)
pool.protect(reservation, 0, pool.page_bytes, Access.read)
print(tensor.sum().item())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-u", "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


DEVICES = pytest.mark.parametrize("fake", [True, pytest.param(False, marks=pytest.mark.gpu)])


@DEVICES
def test_the_interpreter_ends_with_pages_mapped_and_tensors_in_use(fake):
    """On a GPU, libraries may have something to say: that is no error."""
    done = python(SETUP.format(fake=fake))
    assert (done.returncode, done.stdout) == (0, "24.0\n24.0\n")
    assert not re.search("error|exception|traceback|terminate", done.stderr, re.IGNORECASE)
    assert not (fake and done.stderr)


@DEVICES
def test_what_may_only_be_read_cannot_be_written(fake):
    done = python(SETUP.format(fake=fake) + "tensor.fill_(4.0)\nprint(tensor.sum().item())")
    assert done.returncode
    assert done.stdout == "24.0\n"


def test_pages_are_made_on_any_thread(make_pool):
    pool = make_pool()
    reservation = pool.reserve(2 * pool.page_bytes)
    failed: list[BaseException] = []

    def make() -> None:
        try:
            put(pool, reservation, pool.page_bytes, 1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert failed == []
    assert floats(pool, reservation, pool.page_bytes, 16).fill_(2.0).sum().item() == 32
    clear(pool, reservation)


def test_what_is_written_is_read_back(make_pool):
    """Across a page boundary, and also after more pages were mapped at the end."""
    pool = make_pool()
    n = pool.page_bytes // 4
    reservation = pool.reserve(8 * pool.page_bytes)
    put(pool, reservation, 0, 2)
    tensor = floats(pool, reservation, 0, 8 * n)
    expected = torch.arange(2 * n, dtype=torch.float32)
    tensor[: 2 * n].copy_(expected)
    put(pool, reservation, 2 * pool.page_bytes, 1)
    tensor[2 * n : 3 * n].fill_(-1.0)
    assert torch.equal(tensor[: 2 * n].cpu(), expected)
    assert tensor.device == pool.device
    assert tensor.data_ptr() == reservation.address
    del tensor
    clear(pool, reservation)


def test_a_page_moves_to_another_address_with_what_is_in_it(make_pool):
    pool = make_pool()
    first, second = pool.reserve(pool.page_bytes), pool.reserve(2 * pool.page_bytes)
    (page,) = pool.create([first.address])
    pool.map(first, 0, [page])
    pool.protect(first, 0, pool.page_bytes, Access.write)
    floats(pool, first, 0, 512).fill_(7.0)
    pool.fence().wait()
    pool.unmap(first, 0, pool.page_bytes)
    pool.map(second, pool.page_bytes, [page])
    pool.protect(second, pool.page_bytes, pool.page_bytes, Access.write)
    pool.release(page)
    assert (floats(pool, second, pool.page_bytes, 512) == 7.0).all().item()
    clear(pool, first, second)


def test_slots_share_the_pages_of_a_prefix(make_pool):
    slots, prefix, tail = 4, 2, 1
    pool = make_pool()
    size = 4 * pool.page_bytes
    n = pool.page_bytes // 4
    reservation = pool.reserve(slots * size)
    shared = put(pool, reservation, 0, prefix)
    tensor = pool.tensor(reservation, 0, (slots, 4 * n), (4 * n, 1), torch.float32)
    tensor[0, : prefix * n].copy_(torch.arange(prefix * n, dtype=torch.float32))
    for slot in range(slots):
        if slot:
            pool.map(reservation, slot * size, shared)
            pool.protect(reservation, slot * size, prefix * pool.page_bytes, Access.read)
        put(pool, reservation, slot * size + prefix * pool.page_bytes, tail)
        tensor[slot, prefix * n : (prefix + tail) * n].fill_(-1.0 - slot)
    assert pool.stats().committed == (prefix + slots * tail) * pool.page_bytes
    pool.fence().wait()
    pool.unmap(reservation, 0, prefix * pool.page_bytes)
    for slot in range(1, slots):
        row = tensor[slot, : (prefix + tail) * n].cpu()
        assert torch.equal(row[: prefix * n], torch.arange(prefix * n, dtype=torch.float32))
        assert (row[prefix * n :] == -1.0 - slot).all()
    del tensor, row
    clear(pool, reservation)


def test_far_more_is_reserved_than_any_device_has(make_pool):
    pool = make_pool()
    nbytes = 1 << 40
    reservation = pool.reserve(nbytes)
    put(pool, reservation, nbytes - pool.page_bytes, 1)
    tensor = pool.tensor(reservation, 0, (nbytes // 4,), (1,), torch.float32)
    tensor[-64:].fill_(5.0)
    assert tensor[-64:].sum().item() == 320
    stats = pool.stats()
    assert (stats.reserved, stats.committed) == (nbytes, pool.page_bytes)
    del tensor
    clear(pool, reservation)


def cycle(pool: CudaPool, n: int = 2) -> None:
    reservation = pool.reserve(n * pool.page_bytes)
    put(pool, reservation, 0, n)
    floats(pool, reservation, 0, n * pool.page_bytes // 4).fill_(1.0)
    clear(pool, reservation)


def test_a_thousand_cycles_return_every_byte(make_pool):
    """A page lost in any of them would show; a first cycle allocates what the process keeps."""
    pool = make_pool()
    cycle(pool)
    before = pool._driver.free_memory()
    for _ in range(1000):
        cycle(pool)
    assert abs(pool._driver.free_memory() - before) < pool.page_bytes


def test_the_driver_agrees_with_the_arithmetic_within_a_page(make_pool):
    cycle(make_pool())
    pool = make_pool()
    reservation = pool.reserve(64 * pool.page_bytes)
    for i in range(4):
        put(pool, reservation, 16 * i * pool.page_bytes, 16)
        stats = pool.stats()
        assert stats.committed == (i + 1) * 16 * pool.page_bytes
        assert abs(stats.measured - stats.committed) <= pool.page_bytes
    clear(pool, reservation)


@pytest.mark.gpu
def test_a_fence_waits_for_the_devices_work():
    pool = CudaPool()
    stream = torch.cuda.current_stream(pool.device)
    matrix = torch.randn(4096, 4096, device=pool.device)
    pool.fence().wait()
    for _ in range(50):  # a few tenths of a second on the fastest GPU
        matrix = matrix @ matrix
    fence = pool.fence()
    assert not stream.query(), "the device was done before it could be waited for"
    fence.wait()
    assert stream.query()


@pytest.mark.gpu
def test_the_memory_of_a_gpu_ends():
    free, total = torch.cuda.mem_get_info()
    pool = CudaPool(total // 4 // GRANULARITY * GRANULARITY)
    with pytest.raises(KVOutOfMemory) as caught:
        pool.create([0] * 5)
    assert 0 <= caught.value.free < 5 * pool.page_bytes == caught.value.needed
    assert pool.stats().handles == 0
    assert abs(torch.cuda.mem_get_info()[0] - free) < pool.page_bytes
    pool.close()
