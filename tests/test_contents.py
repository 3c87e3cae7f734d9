"""Digests of tensors, against hashlib and NumPy on one thread."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab import contents
from trimtab.contents import digests

SMALL = 64  # bytes of a piece here


@pytest.fixture(params=[1, 3])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "pieces of whole rows": torch.randn(41, 5),
        "rows longer than a piece": torch.randn(3, 40),
        "a vector": torch.randn(100, dtype=torch.float64),
        "a number": torch.tensor(3.0),
        "no rows": torch.randn(0, 4),
        "empty rows": torch.randn(4, 0),
        "the other way round": torch.randn(5, 41).T,
        "every second row": torch.randn(50, 3)[::2],
        "half precision": torch.randn(9, 2, 3).bfloat16(),
        "truth values": torch.rand(130) > 0.5,
        "with a gradient": torch.randn(20, 4, requires_grad=True),
    }


def expected(tensor: Tensor) -> bytes:
    """Return the digest by its definition: SHA-256 over that of every piece."""
    held = tensor.detach().contiguous()
    rows = held.view(torch.uint8).numpy() if held.ndim and held.numel() else None
    if held.ndim == 0:
        rows = np.frombuffer(held.numpy().tobytes(), np.uint8)[None]
    if rows is None or rows.size == 0:
        pieces = [b""]
    else:
        flat = rows.reshape(max(len(held), 1) if held.ndim else 1, -1)
        count = max(SMALL // flat.shape[1], 1)
        pieces = [flat[n : n + count].tobytes() for n in range(0, len(flat), count)]
    return hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in pieces)).digest()


def test_a_digest_is_over_those_of_pieces_whatever_hashes_them(monkeypatch, threads):
    monkeypatch.setattr(contents, "PIECE", SMALL)
    given = tensors()
    found = dict(zip(given, digests([*given.values()]), strict=True))
    assert found == {name: expected(tensor) for name, tensor in given.items()}


def test_every_bit_and_the_order_of_pieces_count(monkeypatch):
    monkeypatch.setattr(contents, "PIECE", SMALL)
    given = torch.arange(64, dtype=torch.float32).view(16, 4)
    others = [given.clone() for _ in range(64)]
    for place, other in enumerate(others):
        other.view(torch.int32).view(-1)[place] ^= 1
    found = [*digests([given, given.roll(4, 0), *others])]
    assert len(set(found)) == len(found)


def test_no_more_pieces_are_copied_at_a_time_than_there_are_threads(monkeypatch, threads):
    """Each of them is a part of the tensor itself, which is copied where it is hashed."""
    monkeypatch.setattr(contents, "PIECE", SMALL)
    tensor, lock = torch.randn(4, 500).T, threading.Lock()
    seen: list[Tensor] = []
    most = running = 0
    hashed = contents.bytes_of

    def counting(piece: Tensor) -> memoryview:
        nonlocal most, running
        with lock:
            seen.append(piece)
            running += 1
            most = max(most, running)
        content = hashed(piece)
        with lock:
            running -= 1
        return content

    monkeypatch.setattr(contents, "bytes_of", counting)
    assert len([*digests([tensor])]) == 1
    assert len(seen) == 125
    assert most <= threads
    storage = tensor.untyped_storage().data_ptr()
    assert all(piece.nbytes == SMALL for piece in seen)
    assert all(piece.untyped_storage().data_ptr() == storage for piece in seen)


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    def failing(piece: Tensor) -> memoryview:
        raise MemoryError("no room for a piece")

    monkeypatch.setattr(contents, "bytes_of", failing)
    with pytest.raises(MemoryError, match="no room"):
        next(digests([torch.ones(3)]))


@pytest.mark.gpu
def test_a_tensor_has_one_digest_on_the_cpu_and_on_a_gpu(monkeypatch):
    monkeypatch.setattr(contents, "PIECE", SMALL)
    given = tensors()
    on_gpu = [tensor.detach().cuda() for tensor in given.values()]
    assert [*digests(on_gpu)] == [expected(tensor) for tensor in given.values()]
    with torch.cuda.stream(torch.cuda.Stream()):
        filled = torch.zeros(2**22, device="cuda")
        for _ in range(50):
            filled += 1
        (found,) = digests([filled])
    assert found == next(digests([torch.full((2**22,), 50.0)]))
