"""Pools of every backend, failures on demand, and child processes that may crash."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import itertools
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from tests.vattention.fake_driver import fake_pool
from tests.vattention.mirror import close, make_cache
from trimtab.vattention import host
from trimtab.vattention.cuda import CudaPool
from trimtab.vattention.driver import NO_MEMORY, DriverError
from trimtab.vattention.host import HostPool
from trimtab.vattention.pool import PagePool
from trimtab.vattention.virtual_kv import VirtualKV

PAGE = 4096


def host_pool(page_bytes: int = PAGE, budget: int | None = None) -> PagePool:
    return HostPool(page_bytes, budget)


def small_fake_pool(page_bytes: int = PAGE, budget: int | None = None) -> PagePool:
    return fake_pool(page_bytes, budget, granularity=PAGE)


def cuda_pool(page_bytes: int = 1 << 21, budget: int | None = None) -> PagePool:
    return CudaPool(page_bytes, budget)


# Backends whose memory the CPU can access.
ON_CPU = {"host": host_pool, "fake": small_fake_pool}
MAKERS = {**ON_CPU, "cuda": cuda_pool}


@pytest.fixture(params=["host", "fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def pool(request: pytest.FixtureRequest) -> Callable[..., PagePool]:
    """Return a function that makes a pool of small pages; arguments as for `PagePool`."""
    return MAKERS[request.param]


@pytest.fixture(params=list(ON_CPU))
def cpu_pool(request: pytest.FixtureRequest) -> Callable[..., PagePool]:
    """Return such a function for each backend whose memory the CPU can access."""
    return ON_CPU[request.param]


@pytest.fixture
def make(pool) -> Iterator[Callable[..., VirtualKV]]:
    """Return a function that makes caches. At the end of a test their pools must be empty."""
    caches = []

    def make(budget_rows: int | None = None, **more) -> VirtualKV:
        pages = pool()
        if budget_rows is not None:
            planes = 2 if more.get("layout") == "mega" else 2 * more.get("layers", 2)
            pages = pool(budget=budget_rows * planes * pages.page_bytes)
        caches.append(make_cache(pages, **more))
        return caches[-1]

    yield make
    for kv in caches:
        close(kv)


_HOST_CALLS = {
    "reserve": (host._libc, "mmap"),
    "free": (host._libc, "munmap"),
    "create": (os, "posix_fallocate"),
    "destroy": (host._libc, "fallocate"),
    "map": (host._libc, "mmap"),
    "protect": (host._libc, "mprotect"),
    "unmap": (host._libc, "mmap"),
}
_DRIVER_CALLS = {"destroy": "release", "protect": "set_access"}


@contextmanager
def failing(pool: PagePool, call: str, k: int = 1, memory: bool = False) -> Iterator[None]:
    """Let the system refuse the `k`-th call of a kind within the block, and only that one.

    Parameters
    ----------
    pool : PagePool
    call : str
        What the pool wants to do: one of the keys above.
    k : int
    memory : bool
        Whether a refused `create` is for lack of memory: a driver is asked once more then, and
        refuses again.
    """
    refused = {k}
    if isinstance(pool, HostPool):
        target, name = _HOST_CALLS[call]
        code = errno.ENOSPC if memory else errno.EIO
    else:
        target, name = pool._driver, _DRIVER_CALLS.get(call, call)
        code = NO_MEMORY if memory else "CUDA_ERROR_UNKNOWN"
        refused |= {k + 1} if memory else set()
    original, calls = getattr(target, name), itertools.count(1)

    def refuse() -> int:
        if target is os:
            raise OSError(code, "injected")
        if target is not host._libc:
            raise DriverError(name, code, "injected")
        ctypes.set_errno(code)
        return 2**64 - 1 if name == "mmap" else -1

    def called(*arguments: Any) -> Any:
        return refuse() if next(calls) in refused else original(*arguments)

    # Finalizers of other tests' pools would be counted if they ran within the block.
    gc.disable()
    try:
        with mock.patch.object(target, name, called):
            yield
    finally:
        gc.enable()


def in_child(function: Callable[..., object], *arguments: object) -> int:
    """Return the exit status of a function in a forked child; minus the signal if killed."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            signal.alarm(20)
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
