"""Arguments, contexts and errors of driver calls, with a stand-in for cuda-bindings."""

# ruff: noqa: N801, N802, N815 (names of the driver)

from __future__ import annotations

import enum
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.vattention.fake_driver import GRANULARITY, FakeDriver
from trimtab.errors import TrimtabError
from trimtab.vattention.driver import CudaDriver, DriverError
from trimtab.vattention.pages import Access, PageError

MB = 1 << 20
ADDRESS, HANDLE = 0x7F0000000000, 0xABCD
NAMES = [
    "CUresult", "CUdevice_attribute", "CUmemAllocationProp", "CUmemAllocationType",
    "CUmemLocationType", "CUmemAllocationGranularity_flags", "CUmemAccessDesc",
    "CUmemAccess_flags", "CUdeviceptr", "CUmemGenericAllocationHandle", "CUcontext", "CUdevice",
]  # fmt: skip


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_DEINITIALIZED = 4


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102


class CUmemAllocationType(enum.IntEnum):
    CU_MEM_ALLOCATION_TYPE_PINNED = 1


class CUmemLocationType(enum.IntEnum):
    CU_MEM_LOCATION_TYPE_DEVICE = 1


class CUmemAllocationGranularity_flags(enum.IntEnum):
    CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0


class CUmemAccess_flags(enum.IntEnum):
    CU_MEM_ACCESS_FLAGS_PROT_NONE = 0
    CU_MEM_ACCESS_FLAGS_PROT_READ = 1
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3


@dataclass(slots=True)
class CUmemLocation:
    type: Any = None
    id: int = -1


@dataclass(slots=True)
class CUmemAllocationProp:
    type: Any = None
    requestedHandleTypes: int = 0
    location: CUmemLocation = field(default_factory=CUmemLocation)


@dataclass(slots=True)
class CUmemAccessDesc:
    flags: Any = None
    location: CUmemLocation = field(default_factory=CUmemLocation)


@dataclass(frozen=True)
class Wrapped:
    """An address, a handle, a device or a context: a number of a distinct type."""

    number: int

    def __int__(self) -> int:
        return self.number


CUdeviceptr = CUmemGenericAllocationHandle = CUcontext = CUdevice = Wrapped

# One of each call, as `CudaDriver` makes it on device 1.
CALLS: dict[str, Callable[[CudaDriver], object]] = {
    "cuMemAddressReserve": lambda driver: driver.reserve(8 * MB),
    "cuMemAddressFree": lambda driver: driver.free(ADDRESS, 8 * MB),
    "cuMemCreate": lambda driver: driver.create(4 * MB),
    "cuMemRelease": lambda driver: driver.release(HANDLE),
    "cuMemMap": lambda driver: driver.map(ADDRESS + 4 * MB, 4 * MB, HANDLE),
    "cuMemUnmap": lambda driver: driver.unmap(ADDRESS + 4 * MB, 4 * MB),
    "cuMemSetAccess": lambda driver: driver.set_access(ADDRESS, 8 * MB, Access.read),
    "cuMemGetInfo": lambda driver: driver.free_memory(),
    "cuCtxSynchronize": lambda driver: driver.synchronize(),
}
GIVING_BACK = ["cuMemAddressFree", "cuMemRelease", "cuMemUnmap", "cuCtxSynchronize"]


class Bindings:
    """Has the signatures of `cuda.bindings.driver`, and returns tuples with the status first."""

    def __init__(self, types: Any) -> None:
        for name in NAMES:
            setattr(self, name, getattr(types, name))
        self.types = types
        self.supported = 1
        self.text: bytes | None = b"so it said"
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, str] = {}
        self.primary = types.CUcontext(77)
        self._threads = threading.local()

    @property
    def stack(self) -> list[Any]:
        """The calling thread's stack of contexts."""
        return self._threads.__dict__.setdefault("stack", [])

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        return self._answer("cuInit", Flags)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self._answer("cuDeviceGet", ordinal, value=self.types.CUdevice(ordinal))

    def cuDeviceGetAttribute(self, attrib: Any, dev: Any) -> tuple[Any, ...]:
        wanted = self.types.CUdevice_attribute
        assert attrib == wanted.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        return self._answer("cuDeviceGetAttribute", int(dev), value=self.supported)

    def cuDevicePrimaryCtxRetain(self, dev: Any) -> tuple[Any, ...]:
        return self._answer("cuDevicePrimaryCtxRetain", int(dev), value=self.primary)

    def cuCtxPushCurrent(self, ctx: Any) -> tuple[Any, ...]:
        self.stack.append(ctx)
        return (self.types.CUresult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return self.types.CUresult.CUDA_SUCCESS, self.stack.pop()

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        return self._in_context("cuCtxSynchronize")

    def cuMemGetAllocationGranularity(self, prop: Any, option: Any) -> tuple[Any, ...]:
        flags = self.types.CUmemAllocationGranularity_flags
        assert option == flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._check_memory(prop)
        return self._in_context("cuMemGetAllocationGranularity", value=2 * MB)

    def cuMemAddressReserve(
        self, size: int, alignment: int, addr: Any, flags: int
    ) -> tuple[Any, ...]:
        address = self.types.CUdeviceptr(ADDRESS)
        return self._in_context("cuMemAddressReserve", size, alignment, addr, flags, value=address)

    def cuMemAddressFree(self, ptr: Any, size: int) -> tuple[Any, ...]:
        return self._in_context("cuMemAddressFree", ptr, size)

    def cuMemCreate(self, size: int, prop: Any, flags: int) -> tuple[Any, ...]:
        self._check_memory(prop)
        handle = self.types.CUmemGenericAllocationHandle(HANDLE)
        return self._in_context("cuMemCreate", size, flags, value=handle)

    def cuMemRelease(self, handle: Any) -> tuple[Any, ...]:
        return self._in_context("cuMemRelease", handle)

    def cuMemMap(self, ptr: Any, size: int, offset: int, handle: Any, flags: int) -> Any:
        return self._in_context("cuMemMap", ptr, size, offset, handle, flags)

    def cuMemUnmap(self, ptr: Any, size: int) -> tuple[Any, ...]:
        return self._in_context("cuMemUnmap", ptr, size)

    def cuMemSetAccess(self, ptr: Any, size: int, desc: Any, count: int) -> Any:
        assert isinstance(desc, list | tuple)
        assert all(isinstance(one, self.types.CUmemAccessDesc) for one in desc)
        for one in desc:
            self._check_location(one.location)
        flags = [one.flags for one in desc]
        return self._in_context("cuMemSetAccess", ptr, size, flags, count)

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        status, free = self._in_context("cuMemGetInfo", value=3 * MB)
        return status, free, free and 9 * MB

    def cuGetErrorString(self, error: Any) -> tuple[Any, ...]:
        assert isinstance(error, self.types.CUresult)
        return self.types.CUresult.CUDA_SUCCESS, self.text

    def _check_memory(self, prop: Any) -> None:
        assert isinstance(prop, self.types.CUmemAllocationProp)
        assert prop.type == self.types.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        assert int(prop.requestedHandleTypes) == 0
        self._check_location(prop.location)

    def _check_location(self, location: Any) -> None:
        assert location.type == self.types.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        assert location.id == 1

    def _in_context(self, call: str, *arguments: Any, value: Any = None) -> tuple[Any, ...]:
        assert self.stack, f"{call} without a context"
        assert self.stack[-1] is self.primary, f"{call} in another context"
        return self._answer(call, *arguments, value=value)

    def _answer(self, call: str, *arguments: Any, value: Any = None) -> tuple[Any, ...]:
        self.calls.append((call, *arguments))
        code = self.failures.get(call, "CUDA_SUCCESS")
        status = getattr(self.types.CUresult, code)
        if value is None:
            return (status,)
        return status, value if code == "CUDA_SUCCESS" else None


@pytest.fixture(params=["stand-in", "cuda-bindings"])
def types(request: pytest.FixtureRequest) -> Any:
    """Return structures and enumerations: our own, and the real ones if they are installed."""
    if request.param == "stand-in":
        return SimpleNamespace(**{name: globals()[name] for name in NAMES})
    return pytest.importorskip("cuda.bindings.driver")


@pytest.fixture
def bindings(types: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bindings]:
    bindings = Bindings(types)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    yield bindings
    assert not bindings.stack, "a context was left behind"


@pytest.fixture
def driver(bindings: Bindings) -> CudaDriver:
    return CudaDriver(torch.device("cuda"))


def test_opening_takes_the_primary_context_of_pytorchs_device(driver, bindings):
    assert driver.device == torch.device("cuda", 1)
    assert driver.granularity == 2 * MB
    assert bindings.calls == [
        ("cuInit", 0),
        ("cuDeviceGet", 1),
        ("cuDeviceGetAttribute", 1),
        ("cuDevicePrimaryCtxRetain", 1),
        ("cuMemGetAllocationGranularity",),
    ]


def test_an_index_chooses_the_device(bindings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert CudaDriver(torch.device("cuda", 1)).device == torch.device("cuda", 1)
    assert ("cuDeviceGet", 1) in bindings.calls


def test_the_calls_and_their_arguments(driver, bindings):
    bindings.calls.clear()
    answers = [call(driver) for call in CALLS.values()]
    assert answers == [ADDRESS, None, HANDLE, None, None, None, None, 3 * MB, None]
    assert [type(answer) for answer in answers if answer] == [int, int, int]
    read = bindings.types.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READ
    assert bindings.calls == [
        ("cuMemAddressReserve", 8 * MB, 0, 0, 0),
        ("cuMemAddressFree", ADDRESS, 8 * MB),
        ("cuMemCreate", 4 * MB, 0),
        ("cuMemRelease", HANDLE),
        ("cuMemMap", ADDRESS + 4 * MB, 4 * MB, 0, HANDLE, 0),
        ("cuMemUnmap", ADDRESS + 4 * MB, 4 * MB),
        ("cuMemSetAccess", ADDRESS, 8 * MB, [read], 1),
        ("cuMemGetInfo",),
        ("cuCtxSynchronize",),
    ]


@pytest.mark.parametrize(("access", "bits"), [("read", 1), ("write", 3)])
def test_access_flags(driver, bindings, access, bits):
    driver.set_access(ADDRESS, 2 * MB, Access[access])
    assert [int(flag) for flag in bindings.calls[-1][3]] == [bits]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_finds_the_context_on_any_thread_and_leaves_the_threads_own(driver, bindings, call):
    """The stand-in asserts that the primary context is current."""
    outcome: list[object] = []

    def run() -> None:
        try:
            CALLS[call](driver)
            assert bindings.stack == []
            bindings.stack.append("another device's")
            bindings.failures[call] = "CUDA_ERROR_INVALID_VALUE"
            with pytest.raises(DriverError):
                CALLS[call](driver)
            assert bindings.stack == ["another device's"]
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcome == []


@pytest.mark.parametrize("call", CALLS)
def test_an_error_names_the_call_the_code_and_the_reason(driver, bindings, call):
    bindings.failures[call] = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(PageError, match=r"CUDA_ERROR_INVALID_VALUE \(so it said\)") as caught:
        CALLS[call](driver)
    assert caught.value.call == call
    assert caught.value.code == "CUDA_ERROR_INVALID_VALUE"
    bindings.text = None
    with pytest.raises(PageError, match="no description"):
        CALLS[call](driver)


@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_has_shut_down_has_freed_everything(driver, bindings, call):
    bindings.failures[call] = "CUDA_ERROR_DEINITIALIZED"
    if call in GIVING_BACK:
        CALLS[call](driver)
    else:
        with pytest.raises(DriverError, match="CUDA_ERROR_DEINITIALIZED"):
            CALLS[call](driver)


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_errors_of_opening(bindings, call):
    bindings.failures[call] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(DriverError, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
        CudaDriver(torch.device("cuda"))
    assert caught.value.call == call


def test_a_fence_holds_up_the_host(driver, monkeypatch):
    """Not `wait` of PyTorch's event, which blocks a CUDA stream."""
    seen: list[object] = []

    class Event:
        def record(self, stream: object) -> None:
            seen.append(("record", stream))

        def synchronize(self) -> None:
            seen.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    fence = driver.fence()
    assert seen == [("record", "stream of cuda:1")]
    fence.wait()
    assert seen[1:] == ["synchronize"]


def test_pytorchs_allocator_is_that_of_the_device(driver, monkeypatch):
    entered: list[torch.device] = []
    emptied: list[torch.device] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            entered.pop()

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.extend(entered))
    monkeypatch.setattr(torch.cuda, "memory_reserved", {torch.device("cuda", 1): 3 * MB}.get)
    driver.empty_allocator()
    assert emptied == [torch.device("cuda", 1)]
    assert driver.allocator_memory() == 3 * MB


def test_a_gpu_without_virtual_memory_management_is_refused(bindings):
    bindings.supported = 0
    with pytest.raises(TrimtabError, match="cuda:1.*virtual memory management"):
        CudaDriver(torch.device("cuda"))
    assert "cuDevicePrimaryCtxRetain" not in {call for call, *_ in bindings.calls}


def test_missing_cuda_bindings_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(TrimtabError, match=re.escape("pip install 'trimtab[cuda]'")):
        CudaDriver(torch.device("cuda"))


@pytest.mark.parametrize(("device", "available"), [("cuda", False), ("cpu", True)])
def test_no_gpu_is_named(bindings, monkeypatch, device, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    with pytest.raises(TrimtabError, match=f"device={device}.*no such NVIDIA GPU"):
        CudaDriver(torch.device(device))
    assert not bindings.calls


def test_the_stand_in_has_the_signatures_of_cuda_bindings():
    """According to the first line of its functions' docstrings."""
    real = pytest.importorskip("cuda.bindings.driver")
    names = [name for name in vars(Bindings) if re.match(r"cu[A-Z]", name)]
    assert {"cuInit", *CALLS} <= set(names)
    for name in names:
        signature = getattr(real, name).__doc__.splitlines()[0]
        inside = re.sub(r"\[[^\]]*\]+", "", signature.partition("(")[2].rpartition(")")[0])
        found = [part.partition(":")[0].split()[-1] for part in inside.split(",") if part]
        code = getattr(Bindings, name).__code__
        assert list(code.co_varnames[1 : code.co_argcount]) == found, signature


def fake() -> tuple[FakeDriver, int, int]:
    """Return a driver, a range of eight granules and a handle of one, mapped at the first two."""
    driver = FakeDriver()
    start, handle = driver.reserve(8 * GRANULARITY), driver.create(GRANULARITY)
    driver.map(start, GRANULARITY, handle)
    driver.map(start + GRANULARITY, GRANULARITY, handle)
    return driver, start, handle


MISUSES: dict[str, Callable[[FakeDriver, int, int], object]] = {
    "no multiple": lambda driver, start, handle: driver.create(GRANULARITY + 4096),
    "0 bytes": lambda driver, start, handle: driver.reserve(0),
    "mapped there already": lambda driver, start, handle: driver.map(start, GRANULARITY, handle),
    "not the whole allocation": lambda driver, start, handle: driver.map(
        start + 2 * GRANULARITY, 2 * GRANULARITY, handle
    ),
    "not within one reserved": lambda driver, start, handle: driver.map(
        start + 8 * GRANULARITY, GRANULARITY, handle
    ),
    "still mapped": lambda driver, start, handle: driver.free(start, 8 * GRANULARITY),
    "not a whole range": lambda driver, start, handle: driver.free(start, GRANULARITY),
    "whole mappings": lambda driver, start, handle: driver.unmap(start, 3 * GRANULARITY),
    "of whole mappings": lambda driver, start, handle: driver.set_access(
        start + GRANULARITY, 2 * GRANULARITY, Access.read
    ),
    "never created": lambda driver, start, handle: driver.release(handle + 1),
    "was released": lambda driver, start, handle: [driver.release(handle) for _ in range(2)],
}


@pytest.mark.parametrize("rule", MISUSES)
def test_the_fake_driver_knows_the_rules(rule):
    with pytest.raises(AssertionError, match=rule):
        MISUSES[rule](*fake())


def test_the_fake_driver_keeps_memory_until_its_last_mapping():
    driver, start, handle = fake()
    driver.release(handle)
    driver.unmap(start, GRANULARITY)
    assert driver.used_memory == GRANULARITY
    with pytest.raises(AssertionError, match="still mapped"):
        driver.check_clean()
    driver.unmap(start + GRANULARITY, GRANULARITY)
    assert driver.used_memory == 0
    with pytest.raises(AssertionError, match="still reserved"):
        driver.check_clean()
    driver.free(start, 8 * GRANULARITY)
    driver.check_clean()
