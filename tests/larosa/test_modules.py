from __future__ import annotations

import copy
import itertools
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import nn

from trimtab.errors import TrimtabError
from trimtab.larosa import waiting
from trimtab.larosa.modules import SparseLinear, SparseNorm, side_by_side
from trimtab.larosa.precision import stored_transform, transform_matrix
from trimtab.larosa.replaced import aside
from trimtab.larosa.settings import Precision
from trimtab.models.decode_parts import joined
from trimtab_kernels.decode_step import Linear

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def parent(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Module()
    module.inner = nn.Module()
    module.inner.linear = nn.Linear(7, 5, dtype=dtype)
    return module.requires_grad_(False)


@pytest.mark.parametrize("failing", [False, True], ids=["normal", "exception"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_replaced_leaves_memory_and_comes_back_bit_for_bit(dtype, failing):
    module, stand_in = parent(dtype), nn.Identity()
    original = module.inner.linear
    original.weight[0, 0], original.weight[0, 1] = torch.nan, -0.0
    parameters = list(original.parameters())
    bits = [p.clone().view(torch.uint8) for p in parameters]

    def use() -> None:
        with aside(module) as away:
            away.replace("inner.linear", stand_in)
            assert module.inner.linear is stand_in
            assert [p.numel() for p in parameters] == [0, 0]
            if failing:
                raise KeyError("within")

    if failing:
        with pytest.raises(KeyError, match="within"):
            use()
    else:
        use()
    assert module.inner.linear is original
    for found, parameter, expected in zip(original.parameters(), parameters, bits, strict=True):
        assert found is parameter
        assert found.dtype == dtype
        assert torch.equal(found.view(torch.uint8), expected)


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null"], ids=["full", "forgetful"])
@pytest.mark.parametrize("failing", ["other", "inner.linear"])
def test_a_disk_that_fails_loses_nothing(place, failing, monkeypatch):
    module = parent(torch.float32)
    module.other = nn.Linear(700, 500)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with open(place, "w+b") as broken, aside(module) as away:
        for name in ("other", "inner.linear"):
            if name == failing:
                monkeypatch.setattr(away._file, "_file", broken)
                with pytest.raises(TrimtabError, match=rf"^{name} cannot be moved .*set TMPDIR"):
                    away.replace(name, nn.Identity())
                monkeypatch.undo()
            else:
                away.replace(name, nn.Identity())
    assert type(module.other) is type(module.inner.linear) is nn.Linear
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_where_no_temporary_file_can_be_made_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    module = parent(torch.float32)
    original = module.inner.linear
    with aside(module) as away:
        with pytest.raises(TrimtabError, match="No such file or directory; set TMPDIR"):
            away.replace("inner.linear", nn.Identity())
        assert module.inner.linear is original
    assert original.weight.numel()


def test_a_parameter_two_modules_share_is_not_lost():
    module = parent(torch.float32)
    module.other = nn.Linear(7, 5, bias=False)
    module.other.weight = shared = module.inner.linear.weight
    expected = shared.clone()
    with aside(module) as away:
        away.replace("inner.linear", nn.Identity())
        away.replace("other", nn.Identity())
        assert shared.numel() == 0
    assert module.other.weight is module.inner.linear.weight is shared
    assert torch.equal(shared, expected)


def test_a_weight_that_is_stored_transposed_comes_back_as_it_was():
    module = parent(torch.float32)
    linear = module.inner.linear
    linear.weight.data = torch.randn(7, 5).T
    expected = linear.weight.clone()
    with aside(module) as away:
        away.replace("inner.linear", nn.Identity())
    assert torch.equal(linear.weight, expected)


def moved_module() -> nn.Module:
    """Return linear layers of 4 MiB and a little more."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(1024, 1024 + n) for n, name in enumerate(("first", "other", "last"))}
    return nn.ModuleDict(layers).requires_grad_(False)


@contextmanager
def moved_away(module: nn.Module) -> Iterator[None]:
    """Have other layers of the same sizes stand in for all."""
    with aside(module) as away:
        for name, layer in list(module.named_children()):
            away.replace(name, nn.Linear(layer.in_features, layer.out_features))
        yield


@contextmanager
def limited(what: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def used_up(what: str, held: list[Any]) -> None:
    """Open files, or take memory, until there are no more."""
    with pytest.raises((OSError, RuntimeError)):
        while True:
            files = what == "files"
            held.append(os.open(os.devnull, os.O_RDONLY) if files else torch.empty(2**14))


@pytest.mark.parametrize("what", ["files", "memory"])
def test_weights_come_back_where_files_or_memory_are_used_up(what):
    module, held = moved_module(), []
    before = copy.deepcopy(module.state_dict())
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = next(n for n in range(soft) if not Path(f"/proc/self/fd/{n}").exists())
    files, memory = (resource.RLIMIT_NOFILE, free + 9), (resource.RLIMIT_AS, size + 2**25)
    with limited(*(files if what == "files" else memory)), moved_away(module):
        used_up(what, held)
    if what == "files":
        for one in held:
            os.close(one)
    assert all(torch.equal(module.state_dict()[key], one) for key, one in before.items())


def test_weights_come_back_wherever_others_read_the_file(monkeypatch):
    """As a process does that was forked within the block: they share its position."""
    module, read = moved_module(), waiting._read
    before = copy.deepcopy(module.state_dict())

    def elsewhere(file: IO[bytes], start: int, into: memoryview) -> None:
        file.seek(7)
        read(file, start, into)

    monkeypatch.setattr(waiting, "_read", elsewhere)
    with moved_away(module):
        pass
    assert all(torch.equal(module.state_dict()[key], one) for key, one in before.items())


def test_weights_that_cannot_come_back_are_named_and_the_others_do(monkeypatch):
    module, read = moved_module(), waiting._read
    before = copy.deepcopy(module.state_dict())
    pieces = itertools.count()

    def failing(*given: Any) -> None:
        if next(pieces) == 2:  # of the last layer's weight, as its bias comes before
            raise OSError("the disk is gone")
        read(*given)

    message = r"^last\.weight: the weights cannot be put back into memory \(the disk is gone\)"
    with pytest.raises(TrimtabError, match=message), moved_away(module):
        monkeypatch.setattr(waiting, "_read", failing)
    after = module.state_dict()
    assert {key for key, one in before.items() if one.shape != after[key].shape} == {"last.weight"}
    del before["last.weight"]
    assert all(torch.equal(after[key], one) for key, one in before.items())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (1, 1, 6), (2, 3, 6), (4, 6)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_linear_layer_on_what_the_selector_leaves(dtype, shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, 9, bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    bound = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    dense = SparseLinear(linear.weight.T.contiguous(), linear.bias, None)
    torch.testing.assert_close(dense(x), linear(x), **bound)
    keep = torch.tensor([1, 0, 0, 1, 1, 0], dtype=dtype)
    sparse = SparseLinear(linear.weight.T.contiguous(), linear.bias, lambda z: z * keep)
    torch.testing.assert_close(sparse(x), linear(x * keep), **bound)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_norm_transforms_before_it_selects(precision):
    torch.manual_seed(0)
    weight = 1 + 0.3 * torch.randn(8, dtype=torch.float64)
    stored = stored_transform(torch.randn(8, 8, dtype=torch.float64), weight, precision)
    norm = nn.RMSNorm(8, eps=1e-5, dtype=torch.float64)
    norm.weight = nn.Parameter(stored["norm_weight"].double(), requires_grad=False)
    transform = stored["transform"]
    transform = transform if precision is Precision.int8 else transform.double()
    module = SparseNorm(norm, transform, stored.get("transform_scale"), lambda z: z.clamp(min=0))
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    rotated = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ transform_matrix(stored)
    torch.testing.assert_close(module(x), rotated.clamp(min=0))
    assert module.transform_bytes == (64 + 4 * 8 if precision is Precision.int8 else 8 * 64)
    plain = SparseNorm(norm, None, None, lambda z: z.clamp(min=0))
    torch.testing.assert_close(plain(x), norm(x).clamp(min=0))
    assert plain.transform_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(5, 3), (512, 512), (1024, 1024), (2048,)])
def test_layers_side_by_side_share_rows_that_are_not_whole_pages_apart(sizes, dtype):
    weights = [torch.randn(7, size, dtype=dtype, requires_grad=True) for size in sizes]
    found = side_by_side([(weight, None) for weight in weights])
    for (weight, bias), given in zip(found, weights, strict=True):
        assert torch.equal(weight, given)
        assert bias is None
    first, last = found[0][0], found[-1][0]
    assert (first.stride(0) * first.element_size()) % 4096 != 0
    assert (first.stride(0) - sum(sizes)) * first.element_size() in (0, 64)
    (one,) = joined([Linear(weight) for weight, _ in found])  # as decode steps read them
    assert torch.equal(one.weight, torch.cat(weights, dim=1))
    assert last.stride(1) == 1


def test_biases_lie_side_by_side_where_all_layers_have_one():
    parts = [(torch.ones(2, 3), torch.arange(3.0)), (torch.ones(2, 1), torch.tensor([7.0]))]
    (_, first), (_, last) = side_by_side(parts)
    assert torch.equal(first, torch.arange(3.0))
    assert last.data_ptr() == first.data_ptr() + first.nbytes
    assert [bias for _, bias in side_by_side([parts[0], (torch.ones(2, 1), None)])][1] is None
