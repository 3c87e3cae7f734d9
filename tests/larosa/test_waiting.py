"""Where parameters wait while others stand in for them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Never

import pytest
import torch
from torch import Tensor, nn

from trimtab import shards
from trimtab.errors import TrimtabError
from trimtab.larosa import replaced, waiting
from trimtab.larosa.replaced import aside
from trimtab.larosa.waiting import FileStore, HostStore, Store, host_store

GIB = 2**30


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, available: int = GIB) -> None:
    """Have parameters on the CPU move as those on a GPU do, and the host have so much memory."""
    for module in (replaced, waiting):
        monkeypatch.setattr(module, "is_elsewhere", lambda parameter: True)
    monkeypatch.setattr(waiting, "available_host_bytes", lambda: available)


def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> Never:
        raise AssertionError("a temporary file is made")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


STORES = {
    "file": lambda undo: FileStore(undo),
    "host": lambda undo: HostStore(2**16),
    "small slabs": lambda undo: HostStore(33),  # tensors lie across them
}


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
def test_what_is_kept_fills_other_tensors_bit_for_bit(make: Callable[[ExitStack], Store]):
    torch.manual_seed(0)
    given = [
        torch.tensor([torch.nan, -0.0, 1e-42]),
        torch.randn(7, 5).bfloat16(),
        torch.randn(5, 9).T,  # stored the other way round
        torch.randn(0, 4),
        torch.tensor(3.0, dtype=torch.float64),
        torch.randint(-128, 127, (11, 3), dtype=torch.int8),
    ]
    expected = [bits(tensor) for tensor in given]
    with ExitStack() as undo:
        store = make(undo)
        refills = [store.keep(tensor) for tensor in given]
        for tensor in given:
            tensor.zero_()
        for tensor, refill, wanted in reversed(list(zip(given, refills, expected, strict=True))):
            found = torch.empty(tensor.shape, dtype=tensor.dtype)
            refill(found)
            assert bits(found) == wanted


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(40, 30), "last": nn.Linear(30, 40)})


@pytest.mark.parametrize("failing", [False, True], ids=["normal", "exception"])
def test_weights_on_a_gpu_wait_on_the_host_and_no_file_is_made(monkeypatch, failing):
    as_on_a_gpu(monkeypatch)
    without_files(monkeypatch)
    module = two_layers()
    originals = dict(module.named_children())
    before = {name: bits(tensor) for name, tensor in module.state_dict().items()}

    def use() -> None:
        with aside(module) as away:
            for name in originals:
                away.replace(name, nn.Identity())
            assert [part.numel() for one in originals.values() for part in one.parameters()] == [
                0, 0, 0, 0
            ]  # fmt: skip
            if failing:
                raise KeyError("within")

    if failing:
        with pytest.raises(KeyError, match="within"):
            use()
    else:
        use()
    assert dict(module.named_children()) == originals
    assert {name: bits(tensor) for name, tensor in module.state_dict().items()} == before


def test_weights_that_have_no_room_on_the_host_wait_in_a_file_which_is_said(monkeypatch, capsys):
    module = two_layers()
    size = sum(parameter.nbytes for parameter in module.parameters())
    as_on_a_gpu(monkeypatch, available=size)  # not all of it may be taken
    before = {name: bits(tensor) for name, tensor in module.state_dict().items()}
    made = []
    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(temporary()) or made[-1])
    with aside(module) as away:
        away.replace("first", nn.Identity())
        away.replace("last", nn.Identity())
        (file,) = made
        assert file.seek(0, 2) == size
    assert file.closed
    assert "Weights on a GPU wait in a temporary file" in capsys.readouterr().err
    assert {name: bits(tensor) for name, tensor in module.state_dict().items()} == before


@pytest.mark.parametrize(
    ("processes", "locked", "fits"),
    [(1, 0, True), (2, 0, False), (2, 2 * GIB, True)],
    ids=["alone", "two processes", "with memory that PyTorch has locked"],
)
def test_processes_share_the_room_and_locked_memory_is_part_of_it(
    monkeypatch, processes, locked, fits
):
    as_on_a_gpu(monkeypatch, available=2 * GIB)
    monkeypatch.setattr(shards, "_PLACE", [0, processes])
    stats = {"allocated_bytes.current": locked + 7, "active_bytes.current": 7}
    monkeypatch.setattr(torch.cuda, "host_memory_stats", lambda: stats)
    with torch.device("meta"):
        module = nn.Linear(2**15, 2**13, bias=False)  # 1 GiB
    assert (host_store(module) is not None) == fits


def test_nothing_waits_on_the_host_of_a_model_that_lies_there(monkeypatch):
    monkeypatch.setattr(waiting, "available_host_bytes", lambda: 1 / 0)
    assert host_store(two_layers()) is None


def test_memory_that_cannot_be_had_after_all_loses_nothing(monkeypatch):
    as_on_a_gpu(monkeypatch)
    without_files(monkeypatch)
    monkeypatch.setattr(replaced, "host_store", lambda model: HostStore(2**60))
    module = two_layers()
    before = {name: bits(tensor) for name, tensor in module.state_dict().items()}
    message = r"^first cannot be moved out of memory to host memory, where it takes 4920 bytes: .*"
    with aside(module) as away, pytest.raises(TrimtabError, match=message) as raised:
        away.replace("first", nn.Identity())
    assert "\n" not in str(raised.value)
    assert type(module["first"]) is nn.Linear
    assert {name: bits(tensor) for name, tensor in module.state_dict().items()} == before


@pytest.mark.gpu
@pytest.mark.parametrize("available", [2**34, 0], ids=["host", "file"])
def test_weights_leave_the_gpu_and_come_back_bit_for_bit(monkeypatch, available):
    monkeypatch.setattr(waiting, "available_host_bytes", lambda: available)
    monkeypatch.setattr(waiting, "_locked_bytes", lambda: 0)
    torch.manual_seed(0)
    module = nn.ModuleDict({name: nn.Linear(4096, 4096) for name in ("first", "last")})
    module.bfloat16().cuda()
    originals = dict(module.named_children())
    before = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    held = torch.cuda.memory_allocated()
    if available:
        without_files(monkeypatch)
    with aside(module) as away:
        for name in originals:
            away.replace(name, nn.Identity())
        assert held - torch.cuda.memory_allocated() >= 2 * 4096 * 4096 * 2
        if available:
            (parts,) = away._moved[0].refill.args
            assert all(part.is_pinned() for part in parts)
    assert dict(module.named_children()) == originals
    for name, tensor in module.state_dict().items():
        assert tensor.is_cuda
        assert torch.equal(tensor.cpu(), before[name])
