"""One calibration among several processes, each with a share of the windows of text.

Nothing else knows `torch.distributed`. Outside `joined` there is one process, and what a function
is given is what it returns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.progress import mute, track, unmute

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # with a process that works alone; one that ended is noticed at once

_PLACE = [0, 1]  # the number of this process, and how many there are


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the time of the ``with``.

    Each takes a GPU where there are any. Where one fails, all end: the first to fail with its
    exception, the others without a word.

    Raises
    ------
    TrimtabError
        If there are fewer GPUs than processes on this machine.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    store, number, processes = next(dist.rendezvous("env://"))
    try:
        _take_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        dist.init_process_group(store=store, rank=number, world_size=processes, timeout=PATIENCE)
        _PLACE[:] = number, processes
        yield
    except BaseException as error:
        if store.add("failed", 1) > 1:
            mute()
            raise SystemExit(1) from error
        unmute()
        raise
    _PLACE[:] = 0, 1
    dist.destroy_process_group()


def _take_gpu(number: int, processes: int) -> None:
    if not (gpus := torch.cuda.device_count()):
        return
    if processes > gpus:
        raise TrimtabError(
            f"{processes} processes share {gpus} GPUs on this machine: start at most one process "
            "a GPU, or set CUDA_VISIBLE_DEVICES= to calibrate on the CPU"
        )
    torch.cuda.set_device(number)


def rank() -> int:
    """Return the number of this process, from 0."""
    return _PLACE[0]


def count() -> int:
    """Return how many processes there are."""
    return _PLACE[1]


def writes() -> bool:
    """Return whether this is the one process that writes files."""
    return rank() == 0


def require_windows(windows: int) -> None:
    """Raise `TrimtabError` where there are fewer windows of text than processes."""
    if windows < count():
        raise TrimtabError(
            f"{count()} processes share {windows} windows of text: start at most {windows}, or "
            "raise tokens and probe_tokens, or use a larger corpus"
        )


def mine(windows: Tensor) -> Tensor:
    """Return this process' share of `windows`, of shape [windows, ...]: the same of any tensor."""
    return windows.tensor_split(count())[rank()]


def summed(part: Tensor) -> Tensor:
    """Return the sum of all processes' tensors of one shape; `part` may be overwritten."""
    if count() > 1:
        with _together():
            dist.all_reduce(part)
    return part


def whole(part: Tensor) -> Tensor:
    """Return, to the process that writes, what `mine` divided; to the others their own part.

    Parameters
    ----------
    part : Tensor
        Of shape [windows, ...], on the host.
    """
    if count() == 1:
        return part
    lengths = torch.zeros(count(), dtype=torch.int64)
    lengths[rank()] = len(part)
    parts = [part]
    for source, length in enumerate(summed(lengths).tolist()[1:], 1):
        with _together():
            if rank() == 0:
                parts.append(part.new_empty(length, *part.shape[1:]))
                dist.recv(_bytes(parts[-1]), source)
            elif rank() == source:
                dist.send(_bytes(part.contiguous()), 0)
    return torch.cat(parts)


def agreed(value: float) -> float:
    """Return the value of the process that writes."""
    if count() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    with _together():
        dist.broadcast(found, 0)
    return found.item()


def shared(own: Mapping[str, Tensor], source: int = 0) -> dict[str, Tensor]:
    """Return, on the host, the tensors that the process `source` gives, of whatever shapes."""
    if count() == 1:
        return dict(own)
    tensors: dict[str, Tensor] = {}
    header = torch.empty(0, dtype=torch.uint8)
    if rank() == source:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in own.items()}
        described = {name: [str(one.dtype)[6:], [*one.shape]] for name, one in tensors.items()}
        header = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    size = torch.tensor(len(header))
    with _together():
        dist.broadcast(size, source)
        header = header if rank() == source else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(header, source)
        for name, (dtype, shape) in json.loads(bytes(header.tolist())).items():
            if rank() != source:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(_bytes(tensors[name]), source)
    return tensors


def each(
    items: Sequence[T], run: Callable[[T], Mapping[str, Tensor]], description: str
) -> list[dict[str, Tensor]]:
    """Return what `run` makes of every item, with a progress bar; each process runs its share."""
    numbers = mine(torch.arange(len(items))).tolist()
    own = {
        f"{number}.{name}": tensor
        for number in track(numbers, description, len(numbers))
        for name, tensor in run(items[number]).items()
    }
    found: list[dict[str, Tensor]] = [{} for _ in items]
    for source in range(count()):
        for key, tensor in shared(own, source).items():
            number, name = key.split(".", 1)
            found[int(number)][name] = tensor
    return found


def wait() -> None:
    """Wait until all processes are here."""
    summed(torch.zeros(1, dtype=torch.float32))


def _bytes(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor's own memory, as what every backend can send."""
    return tensor.view(-1).view(torch.uint8)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrimtabError(
            "another process of this calibration ended or cannot be reached: start it again, and "
            "it goes on where it stopped"
        ) from error
