"""Pages of the host's memory: blocks of an anonymous file, mapped where they are used.

A page is a block of a memfd, and its handle is the block's offset in the file. Only blocks of a
file can be mapped at several addresses, allocated before they are touched, and freed wherever they
are mapped.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from trimtab.errors import TrimtabError
from trimtab.vattention.pages import Access, KVOutOfMemory, PageError, Reservation
from trimtab.vattention.pool import PagePool
from trimtab.vattention.settings import Layout

# Constants and calls that the standard library lacks, from linux/mman.h and linux/falloc.h.
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE, _MAP_FAILED = 0, 0x10, 0x4000, 2**64 - 1
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_UNUSED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
# They read as zeros, of a page that the system has once: who prints all of a tensor, most of which
# is not there, must not lose the process. Writing faults.
_UNUSED_ACCESS = mmap.PROT_READ
_ADDRESS, _SIZE, _OFFSET, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _ADDRESS
_libc.mmap.argtypes = [_ADDRESS, _SIZE, _INT, _INT, _INT, _OFFSET]
_libc.munmap.argtypes = [_ADDRESS, _SIZE]
_libc.mprotect.argtypes = [_ADDRESS, _SIZE, _INT]
_libc.madvise.argtypes = [_ADDRESS, _SIZE, _INT]
_libc.fallocate.argtypes = [_INT, _INT, _OFFSET, _OFFSET]

_PROTECTION = {
    Access.read: mmap.PROT_READ,
    Access.write: mmap.PROT_READ | mmap.PROT_WRITE,
}

# From linux/mman.h: make huge pages of small ones, whatever the system's setting for memory files.
_MADV_COLLAPSE = 25
HUGE_PAGE = 2**21
"""Bytes of a huge page. Pages of a multiple of it are in huge pages where the system has them."""

# Smaller offsets equal addresses of the process, which have 47 or 48 bits.
_ELSEWHERE = 1 << 48


class HostPool(PagePool):
    """Pages of the host's memory.

    Physical memory is allocated when a page is created, never when it is touched, and reads as
    zero. In a container with a memory limit, give a `budget` below the limit: beyond it, the kernel
    kills processes instead of refusing pages.

    Parameters
    ----------
    page_bytes : int
        A multiple of the system's page, 4096 bytes on most machines; at most the machine's memory.
    budget : int, optional
        The most bytes of pages at a time; no limit if None.

    Raises
    ------
    TrimtabError
        If the system refuses a memfd.
    ValueError
        If a page is larger than the machine's memory, and as for every pool.
    """

    backend = "host"
    default_layout = Layout.slot
    device = torch.device("cpu")

    def __init__(self, page_bytes: int, budget: int | None = None) -> None:
        super().__init__(page_bytes, budget)
        memory = mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES")
        if page_bytes > memory:
            raise ValueError(
                f"pages of {page_bytes} bytes; expected at most {memory}, the machine's memory"
            )
        self._offsets: set[int] = set()
        self._elsewhere = _ELSEWHERE
        self._ballast = _unused(2 * self.granularity)
        self._take_ballast()
        self._file = _memory_file()
        self._finalizer = weakref.finalize(
            self, _give_back, self._file, self._ballast, self._reservations
        )
        # Not at the interpreter's exit: tensors may still be read then, and the system cleans up.
        self._finalizer.atexit = False

    @property
    def granularity(self) -> int:
        """Bytes of the system's page."""
        return mmap.PAGESIZE

    def fence(self) -> _Done:
        """Return a mark that has already passed: work on the host is done when it returns."""
        return _Done()

    def close(self) -> None:
        """Give back all memory and the file; refused while anything is reserved."""
        super().close()
        self._finalizer()

    def _reserve(self, nbytes: int) -> int:
        # Reserved up to a page too long, then cut to begin at a multiple of the page. So ranges
        # never overlap in part, nor do the file offsets that equal their addresses.
        spare = self.page_bytes - self.granularity
        start = _unused(nbytes + spare)
        address = -(-start // self.page_bytes) * self.page_bytes
        if address > start:
            _call("munmap", start, address - start)
        if start + spare > address:
            _call("munmap", address + nbytes, start + spare - address)
        return address

    def _free(self, address: int, nbytes: int) -> None:
        _call("munmap", address, nbytes)

    def _create(self, place: int) -> int:
        # The kernel merges neighbouring pages at neighbouring offsets into one mapping, and limits
        # the mappings of a process to 65530 (vm.max_map_count). So a page's offset equals its first
        # address, which no other page shares.
        offset = place
        if place % self.page_bytes or not 0 <= place < _ELSEWHERE or place in self._offsets:
            offset = self._elsewhere
        try:
            os.posix_fallocate(self._file, offset, self.page_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise KVOutOfMemory(self.page_bytes, 0) from error
            raise PageError("fallocate", _reason(error.errno)) from error
        if offset == self._elsewhere:
            self._elsewhere += self.page_bytes
        self._offsets.add(offset)
        return offset

    def _destroy(self, handle: int) -> None:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        _call("fallocate", self._file, mode, handle, self.page_bytes)
        self._offsets.remove(handle)

    def _map(self, address: int, handles: Sequence[int]) -> None:
        start = address
        try:
            for offset, nbytes in self._runs(handles):
                _mmap(address, nbytes, mmap.MAP_SHARED | _MAP_FIXED, self._file, offset)
                if self.page_bytes % HUGE_PAGE == 0:
                    # Refused where there are none, or memory=as_loaded: then pages stay small.
                    _libc.madvise(address, nbytes, _MADV_COLLAPSE)
                address += nbytes
        except BaseException:
            if address > start:
                self._unmap(start, address - start)
            raise

    def _protect(self, address: int, nbytes: int, access: Access) -> None:
        _call("mprotect", address, nbytes, _PROTECTION[access])

    def _unmap(self, address: int, nbytes: int) -> None:
        # Not munmap, after which the system could give the addresses to others.
        try:
            _unused(nbytes, address)
        except PageError:
            if ctypes.get_errno() != errno.ENOMEM:
                raise
            # At the limit of mappings the kernel refuses every mmap, even one that replaces many
            # mappings with one. Giving up a spare mapping makes room for it.
            _call("mprotect", self._ballast, 2 * self.granularity, _PROT_NONE)
            try:
                _unused(nbytes, address)
            finally:
                with suppress(PageError):
                    self._take_ballast()

    def _measured(self) -> int:
        return os.fstat(self._file).st_blocks * 512

    def _take_ballast(self) -> None:
        """Split the ballast into two mappings by different access: a spare one to give up.

        Neither has the access of unused addresses, with which the kernel would merge it.
        """
        _call("mprotect", self._ballast, self.granularity, _PROTECTION[Access.write])
        _call("mprotect", self._ballast + self.granularity, self.granularity, _PROT_NONE)

    def _runs(self, handles: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the offset and bytes of every run of consecutive pages in the file."""
        offset, nbytes = handles[0], 0
        for handle in handles:
            if handle != offset + nbytes:
                yield offset, nbytes
                offset, nbytes = handle, 0
            nbytes += self.page_bytes
        yield offset, nbytes


class _Done:
    def wait(self) -> None:
        """Return at once."""


def _memory_file() -> int:
    try:
        return os.memfd_create("trimtab-kv")
    except OSError as error:
        raise TrimtabError(
            f"memfd_create: {_reason(error.errno)}; pages of host memory are blocks of a memfd: "
            "allow the call in the container's seccomp profile, or, if there are too many open "
            "files, raise their limit (ulimit -n)"
        ) from error


def _give_back(file: int, ballast: int, reservations: set[Reservation]) -> None:
    os.close(file)
    _call("munmap", ballast, 2 * mmap.PAGESIZE)
    for reservation in reservations:
        _call("munmap", reservation.address, reservation.nbytes)


def _unused(nbytes: int, address: int | None = None) -> int:
    """Take a range of addresses, or leave one without pages, and return where it is."""
    flags = _UNUSED if address is None else _UNUSED | _MAP_FIXED
    return _mmap(address or 0, nbytes, flags, protection=_UNUSED_ACCESS)


def _mmap(
    address: int,
    nbytes: int,
    flags: int,
    file: int = -1,
    offset: int = 0,
    protection: int = _PROT_NONE,
) -> int:
    """Map a range, and return its address."""
    mapped: int = _libc.mmap(address, nbytes, protection, flags, file, offset)
    if mapped == _MAP_FAILED:
        raise PageError("mmap", _reason(ctypes.get_errno()))
    return mapped


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        raise PageError(name, _reason(ctypes.get_errno()))


def _reason(code: int | None) -> str:
    hint = ""
    if code == errno.ENOMEM:
        hint = (
            "; the process may have run out of address space (ulimit -v) or of mappings "
            "(sysctl vm.max_map_count), of which larger pages need fewer"
        )
    if code == errno.EFBIG:
        hint = "; the process may not write such large files: lift the limit (ulimit -f unlimited)"
    return f"[{errno.errorcode.get(code or 0, code)}] {os.strerror(code or 0)}{hint}"
