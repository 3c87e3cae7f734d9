from __future__ import annotations

import tempfile

import pytest
import torch
from torch import nn

from trimtab.errors import TrimtabError
from trimtab.larosa.modules import SparseLinear, SparseNorm, side_by_side
from trimtab.larosa.precision import stored_transform, transform_matrix
from trimtab.larosa.replaced import aside, replaced
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
        with aside() as file, replaced(module, "inner.linear", stand_in, file):
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
def test_a_disk_that_fails_loses_nothing(place, failing):
    module = parent(torch.float32)
    module.other = nn.Linear(700, 500)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with aside() as working, open(place, "w+b") as broken:
        files = {name: broken if name == failing else working for name in ("other", "inner.linear")}
        with (
            pytest.raises(TrimtabError, match=r"cannot be moved out of memory.*set TMPDIR"),
            replaced(module, "other", nn.Identity(), files["other"]),
            replaced(module, "inner.linear", nn.Identity(), files["inner.linear"]),
        ):
            pytest.fail("it is as if the parameters had been kept")
    assert type(module.other) is type(module.inner.linear) is nn.Linear
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_where_no_temporary_file_can_be_made_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(TrimtabError, match="No such file or directory; set TMPDIR"), aside():
        pass


def test_a_parameter_two_modules_share_is_not_lost():
    module = parent(torch.float32)
    module.other = nn.Linear(7, 5, bias=False)
    module.other.weight = shared = module.inner.linear.weight
    expected = shared.clone()
    with aside() as file, replaced(module, "inner.linear", nn.Identity(), file):
        with replaced(module, "other", nn.Identity(), file):
            assert shared.numel() == 0
        assert shared.numel() == 0
    assert module.other.weight is module.inner.linear.weight is shared
    assert torch.equal(shared, expected)


def test_a_weight_that_is_stored_transposed_comes_back_as_it_was():
    module = parent(torch.float32)
    linear = module.inner.linear
    linear.weight.data = torch.randn(7, 5).T
    expected = linear.weight.clone()
    with aside() as file, replaced(module, "inner.linear", nn.Identity(), file):
        pass
    assert torch.equal(linear.weight, expected)


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
