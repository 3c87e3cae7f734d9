"""Tensors over foreign memory, and the callback when they die."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from trimtab.vattention import dlpack
from trimtab.vattention.dlpack import KINDS, tensor_at
from trimtab.vattention.host import HostPool

CPU = torch.device("cpu")
MEMORY = torch.arange(64, dtype=torch.float32)


class Drops:
    """Counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def dropped() -> Drops:
    return Drops()


def square(dropped) -> torch.Tensor:
    """Return a 4 x 4 corner of the memory, seen as rows of 8."""
    return tensor_at(MEMORY.data_ptr(), [4, 4], [8, 1], torch.float32, CPU, dropped)


@given(
    st.sampled_from(list(KINDS)),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=4),
)
def test_is_the_strided_view_of_that_memory(dtype, dimensions):
    shape, strides = [size for size, _ in dimensions], [stride for _, stride in dimensions]
    memory = torch.arange(64, dtype=torch.uint8).repeat_interleave(dtype.itemsize).view(dtype)
    expected = memory.as_strided(shape, strides, 2)
    address = memory.data_ptr() + 2 * dtype.itemsize
    found = tensor_at(address, shape, strides, dtype, CPU, Drops())
    assert (found.shape, found.dtype, found.device) == (expected.shape, dtype, CPU)
    # Compared as bytes too, since some of them are NaN.
    assert found.tolist() == expected.tolist() or (
        found.contiguous().view(torch.uint8).tolist()
        == expected.contiguous().view(torch.uint8).tolist()
    )
    if found.numel() > 1:
        assert found.stride() == tuple(strides)
        assert found.data_ptr() == address


def test_writes_reach_the_memory(dropped):
    memory = torch.zeros(64)
    tensor = tensor_at(memory.data_ptr(), [2, 2], [8, 1], torch.float32, CPU, dropped)
    tensor += torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert memory.nonzero().flatten().tolist() == [0, 1, 8, 9]
    assert memory[[0, 1, 8, 9]].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_is_dropped_once_when_the_last_view_dies(dropped):
    tensor = square(dropped)
    views = [tensor.T[1:], tensor[:, ::2]]
    views.append(views[0].detach())
    storage = tensor.untyped_storage()
    del tensor
    while views:
        assert dropped.count == 0
        views.pop()
    assert dropped.count == 0
    del storage
    assert dropped.count == 1


def test_an_autograd_graph_keeps_it(dropped):
    weight = torch.ones(4, 4, requires_grad=True)
    loss = (weight * square(dropped)).sum()
    assert dropped.count == 0
    loss.backward()
    assert dropped.count == 1
    assert torch.equal(weight.grad, MEMORY.view(8, 8)[:4, :4])


def test_is_dropped_from_another_thread(dropped):
    tensors = [square(dropped) for _ in range(8)]
    threads = [threading.Thread(target=tensors.pop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dropped.count == 8


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyError])
def test_may_die_while_an_exception_propagates(dropped, error):
    def throw() -> None:
        raise error("propagating")

    def caught_far_away() -> None:
        print(square(dropped), throw())

    with pytest.raises(error, match="propagating"):
        print(square(dropped), throw())
    assert dropped.count == 1
    with pytest.raises(error, match="propagating"):
        caught_far_away()
    assert dropped.count == 2


def test_an_exception_in_dropped_is_reported_but_does_not_propagate(monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(report.exc_type))
    tensor = square(lambda: 1 / 0)
    del tensor
    assert reports == [ZeroDivisionError]


@pytest.mark.parametrize("answer", [None, RuntimeError("refused")])
def test_is_dropped_once_if_pytorch_does_not_take_it(monkeypatch, dropped, answer):
    def takes_nothing(capsule):
        if answer:
            raise answer

    monkeypatch.setattr(dlpack, "from_dlpack", takes_nothing)
    if answer is None:
        assert square(dropped) is None
    else:
        with pytest.raises(RuntimeError, match="refused"):
            square(dropped)
    assert dropped.count == 1


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [
        (torch.complex64, "cpu", r"dtype=torch.complex64; expected one of torch.bool"),
        (torch.float32, "meta", "device=meta; expected cpu or cuda with an index"),
        (torch.float32, "cuda", "device=cuda; expected cpu or cuda with an index"),
    ],
)
def test_refuses_what_dlpack_cannot_express(dropped, dtype, device, message):
    with pytest.raises(ValueError, match=message):
        tensor_at(MEMORY.data_ptr(), [1], [1], dtype, torch.device(device), dropped)
    assert dropped.count == 1


def test_does_not_touch_what_is_only_reserved(dropped):
    with HostPool(4096) as pool:
        reservation = pool.reserve(1 << 30)
        tensor = tensor_at(
            reservation.address, [4, 1 << 20], [1 << 20, 1], torch.float32, CPU, dropped
        )
        assert tensor.transpose(0, 1)[5:].shape == ((1 << 20) - 5, 4)
        del tensor
        assert dropped.count == 1
        pool.free(reservation)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_100_000_tensors_leave_nothing_behind(dropped):
    def many(count: int) -> None:
        for _ in range(count):
            square(dropped)

    many(10_000)
    gc.collect()
    finalizers, start = len(weakref.finalize._registry), resident_bytes()
    many(90_000)
    assert dropped.count == 100_000
    assert len(weakref.finalize._registry) == finalizers
    # A leak of two words per tensor would be more.
    assert resident_bytes() - start < 1_400_000


def test_what_outlives_the_interpreter_is_left_alone(tmp_path):
    """Held by a module, by PyTorch's C++, by a thread, and by a reference that is never dropped."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, ctypes, sys, threading, time, torch\n"
        "from trimtab.vattention.dlpack import tensor_at\n"
        "memory = torch.zeros(4)\n"
        "def dropped(): print('dropped', flush=True)\n"
        "def make():\n"
        "    return tensor_at(\n"
        "        memory.data_ptr(), [4], [1], torch.float32, torch.device('cpu'), dropped\n"
        "    )\n"
        "sys.kept = make()\n"
        "torch.kept = make().requires_grad_() * 2\n"
        "leaked = make()\n"
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(leaked))\n"
        "def sleep(tensor): time.sleep(60)\n"
        "threading.Thread(target=sleep, args=[make()], daemon=True).start()\n"
        "atexit.register(lambda: print(make().sum().item(), flush=True))\n"
        "make()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["dropped", "dropped", "0.0"]


def test_the_structure_is_that_of_the_protocol():
    """Offsets of DLManagedTensor on a 64-bit machine."""
    offsets = {name: getattr(dlpack._ManagedTensor, name).offset for name in ("data", "ndim")}
    assert offsets == {"data": 0, "ndim": 16}
    assert dlpack._ManagedTensor.shape.offset == 24
    assert dlpack._ManagedTensor.deleter.offset == 56
    assert ctypes.sizeof(dlpack._ManagedTensor) == 64
