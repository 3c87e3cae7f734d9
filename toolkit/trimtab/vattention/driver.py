"""The calls of the CUDA driver that a page pool needs: its virtual memory management.

Addresses, handles and sizes are plain integers; only `CudaDriver` knows the driver's own
structures.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import torch

from trimtab.errors import TrimtabError
from trimtab.vattention.pages import Access, Fence, PageError

GONE = "CUDA_ERROR_DEINITIALIZED"
NO_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
FLAGS = {
    Access.read: "CU_MEM_ACCESS_FLAGS_PROT_READ",
    Access.write: "CU_MEM_ACCESS_FLAGS_PROT_READWRITE",
}


class DriverError(PageError):
    """A call of the driver failed.

    Parameters
    ----------
    call : str
        Name of the call.
    code : str
        Name of the status that it returned.
    text : str
        What the status means.
    """

    def __init__(self, call: str, code: str, text: str) -> None:
        self.code = code
        super().__init__(call, f"{code} ({text})")


class Driver(Protocol):
    """Virtual memory of one device. Any thread may call; its current context stays the same.

    Every call raises `DriverError` if the driver refuses, and then has no effect.

    Attributes
    ----------
    device : torch.device
        Device of the tensors over the memory.
    granularity : int
        Bytes of which sizes and addresses must be multiples.
    """

    device: torch.device
    granularity: int

    def reserve(self, nbytes: int) -> int:
        """Reserve a range of addresses with nothing mapped there, and return its start."""

    def free(self, address: int, nbytes: int) -> None:
        """Free a whole reserved range; nothing may be mapped there."""

    def create(self, nbytes: int) -> int:
        """Allocate physical memory, and return its handle."""

    def release(self, handle: int) -> None:
        """Release a handle; its memory is freed with its last mapping."""

    def map(self, address: int, nbytes: int, handle: int) -> None:
        """Map all memory of a handle at reserved addresses, without access."""

    def unmap(self, address: int, nbytes: int) -> None:
        """Unmap a range that consists of whole mappings."""

    def set_access(self, address: int, nbytes: int, access: Access) -> None:
        """Set what a range that consists of whole mappings may be used for."""

    def free_memory(self) -> int:
        """Return the unused bytes of the device's memory."""

    def allocator_memory(self) -> int:
        """Return the bytes of the device's memory that PyTorch's allocator holds, used or not."""

    def empty_allocator(self) -> None:
        """Have PyTorch's allocator give the memory that it holds unused back to the device."""

    def fence(self) -> Fence:
        """Return a mark after the work submitted to the calling thread's current CUDA stream."""

    def synchronize(self) -> None:
        """Wait for all work of the device's context."""


class CudaDriver(Driver):
    """The driver of an NVIDIA GPU, in the device's primary context, which PyTorch uses too.

    Parameters
    ----------
    device : torch.device
        A CUDA device; PyTorch's current one if it has no index.

    Raises
    ------
    TrimtabError
        If cuda-bindings is not installed, or there is no GPU with virtual memory management.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = _bindings()
        if device.type != "cuda" or not torch.cuda.is_available():
            raise TrimtabError(
                f"device={device}; PyTorch finds no such NVIDIA GPU: use the host's pages, or "
                "install a CUDA build of PyTorch and the NVIDIA driver"
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._answer("cuInit", 0)
        (ordinal,) = self._answer("cuDeviceGet", index)
        attributes = self._cuda.CUdevice_attribute
        supported = attributes.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        if self._answer("cuDeviceGetAttribute", supported, ordinal) != [1]:
            raise TrimtabError(
                f"device={self.device}; expected a GPU and a driver with virtual memory "
                "management, which this one lacks: use another device, or the host's pages"
            )
        # Never released: PyTorch uses the context too, and it outlives every pool.
        (self._context,) = self._answer("cuDevicePrimaryCtxRetain", ordinal)
        self._memory = self._cuda.CUmemAllocationProp()
        self._memory.type = self._cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._locate(self._memory)
        minimum = self._cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        (granularity,) = self._call("cuMemGetAllocationGranularity", self._memory, minimum)
        self.granularity = int(granularity)

    def reserve(self, nbytes: int) -> int:
        (address,) = self._call("cuMemAddressReserve", nbytes, 0, 0, 0)
        return int(address)

    def free(self, address: int, nbytes: int) -> None:
        self._give_back("cuMemAddressFree", address, nbytes)

    def create(self, nbytes: int) -> int:
        (handle,) = self._call("cuMemCreate", nbytes, self._memory, 0)
        return int(handle)

    def release(self, handle: int) -> None:
        self._give_back("cuMemRelease", handle)

    def map(self, address: int, nbytes: int, handle: int) -> None:
        self._call("cuMemMap", address, nbytes, 0, handle, 0)

    def unmap(self, address: int, nbytes: int) -> None:
        self._give_back("cuMemUnmap", address, nbytes)

    def set_access(self, address: int, nbytes: int, access: Access) -> None:
        grant = self._cuda.CUmemAccessDesc()
        self._locate(grant)
        grant.flags = getattr(self._cuda.CUmemAccess_flags, FLAGS[access])
        self._call("cuMemSetAccess", address, nbytes, [grant], 1)

    def free_memory(self) -> int:
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def allocator_memory(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def empty_allocator(self) -> None:
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()

    def fence(self) -> Fence:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return EventFence(event)

    def synchronize(self) -> None:
        self._give_back("cuCtxSynchronize")

    def _locate(self, structure: Any) -> None:
        kinds = self._cuda.CUmemLocationType
        structure.location.type = kinds.CU_MEM_LOCATION_TYPE_DEVICE
        structure.location.id = self.device.index

    def _give_back(self, call: str, *arguments: Any) -> None:
        # A driver that has shut down, as when the interpreter exits, has freed everything.
        try:
            self._call(call, *arguments)
        except DriverError as error:
            if error.code != GONE:
                raise

    def _call(self, call: str, *arguments: Any) -> list[Any]:
        # Pushed and popped, not set: a thread may have no context, or one of another device.
        self._answer("cuCtxPushCurrent", self._context)
        try:
            return self._answer(call, *arguments)
        finally:
            self._answer("cuCtxPopCurrent")

    def _answer(self, call: str, *arguments: Any) -> list[Any]:
        status, *values = getattr(self._cuda, call)(*arguments)
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            _, text = self._cuda.cuGetErrorString(status)
            raise DriverError(call, status.name, text.decode() if text else "no description")
        return values


class EventFence:
    """A CUDA event for which the host waits.

    Parameters
    ----------
    event : torch.cuda.Event
        Recorded. Its own `wait` blocks a CUDA stream, not the host.
    """

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        """Return when the work before the event is done."""
        self._event.synchronize()


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise TrimtabError(
            "pages of GPU memory need cuda-bindings: pip install 'trimtab[cuda]'"
        ) from error
