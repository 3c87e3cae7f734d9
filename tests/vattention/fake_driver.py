"""A CUDA driver without a GPU: it enforces the rules, and its memory is real host memory."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from trimtab.vattention import host
from trimtab.vattention.cuda import CudaPool
from trimtab.vattention.driver import NO_MEMORY, DriverError
from trimtab.vattention.pages import Access

MB = 1 << 20
GRANULARITY = 2 * MB
NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | host._MAP_NORESERVE


@dataclass
class Allocation:
    """Physical memory at `place` of the file, alive until it is released and mapped nowhere."""

    place: int
    nbytes: int
    released: bool = False
    mappings: int = 0


@dataclass
class Mapping:
    nbytes: int
    handle: int
    access: Access | None = None


class FakeDriver:
    """A `Driver` that asserts every rule of the real one.

    Tensors over its memory are on the CPU, and can be used as far as mapping and access allow;
    touching more is a segmentation fault. New memory holds what its last user left there.

    Parameters
    ----------
    memory : int
        Bytes of the device; beyond them, `create` fails with out of memory.
    granularity : int
        Bytes.

    Attributes
    ----------
    allocator_bytes, cached_bytes : int
        Of `used_memory`, what PyTorch's allocator holds, and the part of it that is unused; to be
        set with `allocate`.
    calls : list of tuple
        Every call in order, including failed ones: its name in the driver, and its arguments.
        ``("fence", n)`` and ``("wait", n)`` are for fences, ``("empty allocator",)`` for
        PyTorch's.
    """

    def __init__(self, memory: int = 1 << 33, granularity: int = GRANULARITY) -> None:
        self.device = torch.device("cpu")
        self.granularity = granularity
        self.memory = memory
        self.used_memory = self.allocator_bytes = self.cached_bytes = 0
        self.calls: list[tuple[str | int | Access, ...]] = []
        self.ranges: dict[int, int] = {}
        self.allocations: dict[int, Allocation] = {}
        self.mappings: dict[int, Mapping] = {}
        self._failures: dict[str, tuple[int, str]] = {}
        self._handles = 0
        self._fences = 0
        self._mapping_at: dict[int, int] = {}  # by granule
        self._freed: defaultdict[int, list[int]] = defaultdict(list)
        self._end = 0
        self._file = os.memfd_create("fake-device")
        weakref.finalize(self, os.close, self._file)

    def fail(self, call: str, k: int = 1, code: str = "CUDA_ERROR_UNKNOWN") -> None:
        """Let the `k`-th next call of a kind fail, once, without effect."""
        self._failures[call] = k, code

    def counts(self) -> Counter[str]:
        """Return how many calls of each kind there were."""
        return Counter(str(name) for name, *_ in self.calls)

    def allocate(self, nbytes: int, cached: int = 0) -> None:
        """Have PyTorch's allocator take memory of the device, some of which it does not use."""
        self.used_memory += nbytes
        self.allocator_bytes += nbytes
        self.cached_bytes += cached

    def check_clean(self) -> None:
        """Assert that nothing is reserved, mapped or allocated."""
        assert not self.mappings, f"still mapped: {self.mappings}"
        assert not self.allocations, f"never released: {self.allocations}"
        assert not self.ranges, f"still reserved: {self.ranges}"

    def reserve(self, nbytes: int) -> int:
        self._enter("cuMemAddressReserve", nbytes)
        self._whole(nbytes)
        # Reserved up to a granule too long, then cut to begin at a multiple of it.
        start = host._mmap(0, nbytes + self.granularity, NOTHING)
        address = -(-start // self.granularity) * self.granularity
        if address > start:
            host._call("munmap", start, address - start)
        host._call("munmap", address + nbytes, start + self.granularity - address)
        self.ranges[address] = nbytes
        return address

    def free(self, address: int, nbytes: int) -> None:
        self._enter("cuMemAddressFree", address, nbytes)
        assert self.ranges.get(address) == nbytes, "not a whole range that is reserved"
        mapped = [at for at in self.mappings if address <= at < address + nbytes]
        assert not mapped, "something is still mapped there"
        host._call("munmap", address, nbytes)
        del self.ranges[address]

    def create(self, nbytes: int) -> int:
        self._enter("cuMemCreate", nbytes)
        self._whole(nbytes)
        if self.used_memory + nbytes > self.memory:
            raise DriverError("cuMemCreate", NO_MEMORY, "out of memory")
        self._handles += 1
        self.allocations[self._handles] = Allocation(self._place(nbytes), nbytes)
        self.used_memory += nbytes
        return self._handles

    def release(self, handle: int) -> None:
        self._enter("cuMemRelease", handle)
        self._alive(handle).released = True
        self._drop(handle)

    def map(self, address: int, nbytes: int, handle: int) -> None:
        self._enter("cuMemMap", address, nbytes, handle)
        self._whole(address, nbytes)
        allocation = self._alive(handle)
        assert nbytes == allocation.nbytes, "not the whole allocation"
        assert any(
            start <= address and address + nbytes <= start + size
            for start, size in self.ranges.items()
        ), "not within one reserved range"
        assert not self._within(address, nbytes), "something is mapped there already"
        flags = mmap.MAP_SHARED | host._MAP_FIXED
        host._mmap(address, nbytes, flags, self._file, allocation.place)
        self.mappings[address] = Mapping(nbytes, handle)
        granules = range(address, address + nbytes, self.granularity)
        self._mapping_at.update(dict.fromkeys(granules, address))
        allocation.mappings += 1

    def unmap(self, address: int, nbytes: int) -> None:
        self._enter("cuMemUnmap", address, nbytes)
        self._whole_mappings(address, nbytes)
        host._mmap(address, nbytes, NOTHING | host._MAP_FIXED)
        for at in self._within(address, nbytes):
            handle = self.mappings.pop(at).handle
            self.allocations[handle].mappings -= 1
            self._drop(handle)
        for at in range(address, address + nbytes, self.granularity):
            del self._mapping_at[at]

    def set_access(self, address: int, nbytes: int, access: Access) -> None:
        self._enter("cuMemSetAccess", address, nbytes, access)
        self._whole_mappings(address, nbytes)
        host._call("mprotect", address, nbytes, host._PROTECTION[access])
        for at in self._within(address, nbytes):
            self.mappings[at].access = access

    def free_memory(self) -> int:
        self._enter("cuMemGetInfo")
        return self.memory - self.used_memory

    def allocator_memory(self) -> int:
        return self.allocator_bytes

    def empty_allocator(self) -> None:
        self._enter("empty allocator")
        self.allocate(-self.cached_bytes, -self.cached_bytes)

    def fence(self) -> FakeFence:
        self._fences += 1
        self._enter("fence", self._fences)
        return FakeFence(self, self._fences)

    def synchronize(self) -> None:
        self._enter("cuCtxSynchronize")

    def _enter(self, call: str, *arguments: int | Access) -> None:
        self.calls.append((call, *arguments))
        k, code = self._failures.pop(call, (0, ""))
        if k == 1:
            raise DriverError(call, code, "injected")
        if k:
            self._failures[call] = k - 1, code

    def _whole(self, *sizes: int) -> None:
        for size in sizes:
            assert size > 0, f"{size} bytes"
            assert size % self.granularity == 0, f"{size} is no multiple of the granularity"

    def _alive(self, handle: int) -> Allocation:
        allocation = self.allocations.get(handle)
        assert allocation is not None, f"handle {handle} was released, or never created"
        assert not allocation.released, f"handle {handle} was released"
        return allocation

    def _within(self, address: int, nbytes: int) -> list[int]:
        """Return the mappings that touch a range, by address."""
        granules = range(address, address + nbytes, self.granularity)
        return sorted({self._mapping_at[at] for at in granules if at in self._mapping_at})

    def _whole_mappings(self, address: int, nbytes: int) -> None:
        assert nbytes > 0, "an empty range"
        end = address
        for at in self._within(address, nbytes):
            assert at == end, "the range does not consist of whole mappings"
            end += self.mappings[at].nbytes
        assert end == address + nbytes, "the range does not consist of whole mappings"

    def _place(self, nbytes: int) -> int:
        """Return a place in the file for memory of that size: freed last, or else at the end."""
        if self._freed[nbytes]:
            return self._freed[nbytes].pop()
        place, self._end = self._end, self._end + nbytes
        os.ftruncate(self._file, self._end)
        return place

    def _drop(self, handle: int) -> None:
        allocation = self.allocations[handle]
        if allocation.released and not allocation.mappings:
            del self.allocations[handle]
            self._freed[allocation.nbytes].append(allocation.place)
            self.used_memory -= allocation.nbytes


class FakeFence:
    """A mark that records when someone waits for it."""

    def __init__(self, driver: FakeDriver, number: int) -> None:
        self._driver, self._number = driver, number

    def wait(self) -> None:
        """Return at once."""
        self._driver._enter("wait", self._number)


def fake_pool(
    page_bytes: int = GRANULARITY,
    budget: int | None = None,
    memory: int = 1 << 33,
    granularity: int = GRANULARITY,
) -> CudaPool:
    """Return a pool over a new `FakeDriver`, which is its attribute ``_driver``."""
    return CudaPool(page_bytes, budget, driver=FakeDriver(memory, granularity))
