"""Processes beside each other on one machine: turns at timing, and a GPU each."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import torch

from trimtab.models.embedded import cache_folder
from trimtab.progress import say

GPUS = "CUDA_VISIBLE_DEVICES"
_taken: list[IO[bytes]] = []  # open, and so locked, until the process ends


@contextmanager
def timing_turn() -> Iterator[None]:
    """Keep other processes of this user on this machine from timing for the time of the ``with``.

    A process that is timing is waited for. The turn ends with its process, however that ends.
    Where the cache folder (``$TRIMTAB_CACHE``, or ``~/.cache/trimtab``) cannot be written, or its
    file system locks nothing, nobody is waited for. Not to be nested.
    """
    file = _opened("timing")
    with file or nullcontext():
        if file is not None:
            if not _locked(file):
                say(f"{_holder(file)} is timing on this machine: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            _sign(file)
        yield


def take_gpu() -> None:
    """Have this process see one GPU, until it ends: one that no other process has taken, if any.

    To be called before CUDA is used.
    """
    if _taken:
        return
    visible = os.environ.get(GPUS)
    count = torch.cuda.device_count()
    gpus = visible.split(",") if visible else [str(number) for number in range(count)]
    for gpu in gpus:
        if (file := _opened(f"gpu-{gpu}")) is None:
            return
        if _locked(file):
            _taken.append(file)
            os.environ[GPUS] = gpu
            return
        file.close()
    if gpus:
        say(f"More jobs at a time than the {len(gpus)} GPUs: this one shares a GPU")


def _opened(name: str) -> IO[bytes] | None:
    """Return the file that a lock is on; None where there can be none."""
    path = cache_folder() / f"{name}-{socket.gethostname()}.lock"  # machines may share the folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+b", buffering=0)
    except OSError:
        return None


def _sign(file: IO[bytes]) -> None:
    """Write into a locked file which process has it; a full disk is no reason to fail."""
    with suppress(OSError):
        file.truncate(0)
        file.write(f"Process {os.getpid()}, {Path(sys.argv[0]).name} in {Path.cwd()},".encode())


def _holder(file: IO[bytes]) -> str:
    """Return which process has a locked file."""
    file.seek(0)
    return file.read().decode(errors="replace") or "Another process"


def _locked(file: IO[bytes]) -> bool:
    """Lock a file, and return whether no other process has; true where nothing can be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
