"""The operators under PyTorch's checks, torch.compile and torch.export."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

from tests.kernels.cases import draw
from trimtab_kernels.decode_attention import append_kv, decode_attention
from trimtab_kernels.sparse_linear import (
    gather_tokens,
    int8_linear,
    keep_above,
    keep_topk,
    kernel_name,
    sparse_linear,
)

OPERATORS = torch.ops.trimtab


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [1, 9])
def test_operators_pass_pytorchs_checks(dtype, tokens):
    x, weight, bias = draw(24, 17, dtype, tokens)
    check = torch.library.opcheck
    for keep in (0, 7, 24):
        check(OPERATORS.keep_topk.default, (x, keep))
    check(OPERATORS.keep_above.default, (x, 0.5, None))
    check(OPERATORS.keep_above.default, (x.t(), 0.5, 3))
    check(OPERATORS.sparse_linear.default, (x, weight, bias, 0.5))
    check(OPERATORS.sparse_linear.default, (x, weight, None, 0.0))


KV, ROW, ONE = (2, 4, 1, 24), (2, 1, 24), torch.ones(2, dtype=torch.int32)
PUBLIC = SimpleNamespace(
    keep_topk=keep_topk,
    keep_above=keep_above,
    sparse_linear=sparse_linear,
    int8_linear=int8_linear,
    decode_attention=decode_attention,
    append_kv=append_kv,
)
Q, WIDE = (2, 3, 24), torch.ones(24, 17, dtype=torch.int8)
CALLS = {
    "keep_topk": (lambda ops, x: ops.keep_topk(x, 3), [(5, 24)]),
    "keep_above": (lambda ops, x: ops.keep_above(x, 0.0, None), [(5, 24)]),
    "sparse_linear": (
        lambda ops, x, w, b: ops.sparse_linear(x, w, b, 0.0),
        [(1, 24), (24, 17), (17,)],
    ),
    "int8_linear": (lambda ops, x, s: ops.int8_linear(x, WIDE.to(x.device), s), [(1, 24), (17,)]),
    "decode_attention": (
        lambda ops, q, k, v: ops.decode_attention(q, k, v, ONE.to(q.device), 1.0, None, None),
        [Q, KV, KV],
    ),
    "decode_attention.out": (
        lambda ops, q, k, v: ops.decode_attention(
            q, k, v, ONE.to(q.device), 1.0, None, None, out=torch.empty_like(q)
        ),
        [Q, KV, KV],
    ),
    "append_kv": (
        lambda ops, k, v: ops.append_kv(k.new_zeros(KV), v.new_zeros(KV), k, v, ONE.to(k.device)),
        [ROW, ROW],
    ),
}


def test_every_operator_is_among_the_calls():
    schemas = [one for one in torch._C._jit_get_all_schemas() if one.name.startswith("trimtab::")]
    names = [
        f"{one.name.removeprefix('trimtab::')}.{one.overload_name}".removesuffix(".")
        for one in schemas
        if any(isinstance(argument.type, torch.TensorType) for argument in one.arguments)
    ]
    assert sorted(names) == sorted(CALLS)


@pytest.mark.parametrize("ops", [PUBLIC, OPERATORS], ids=["public", "raw"])
# C++, the reference, and devices for which there is no C++.
@pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.float32, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")],
    ids=str,
)
@pytest.mark.parametrize("name", CALLS)
def test_no_operator_cuts_a_graph_silently(name, dtype, device, ops):
    made, shapes = CALLS[name]
    call = partial(made, ops)
    for index in range(len(shapes)):
        kinds = [torch.float32 if shape == (17,) and name[0] == "i" else dtype for shape in shapes]
        tensors = [
            torch.ones(shape, dtype=kind, device=device)
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        call(*tensors)
        refused = pytest.raises(
            NotImplementedError, match=f"trimtab::{name.split('.')[0]}.* has no derivative"
        )
        with forward_ad.dual_level(), refused:
            dual = forward_ad.make_dual(tensors[index], torch.ones_like(tensors[index]))
            call(*tensors[:index], dual, *tensors[index + 1 :])
        tensors[index].requires_grad_()
        with refused:
            call(*tensors)
        with torch.no_grad():
            call(*tensors)


class Site(torch.nn.Module):
    """A selection that two products share, and a product with a threshold of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for name, tensor in zip(("x", "weight", "bias"), draw(24, 17, dtype), strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        selected = keep_topk(x, 12)
        first = sparse_linear(selected, self.weight, self.bias)
        second = sparse_linear(keep_above(selected, 0.2, 8), self.weight)
        return first + second + sparse_linear(x, self.weight, threshold=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_through_them_without_a_break(dtype, dynamic):
    site = Site(dtype)
    compiled = torch.compile(site, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (1, 3):
        x = draw(24, 1, dtype, tokens)[0][None]
        assert torch.equal(compiled(x), site(x))


def test_export_traces_through_them():
    site = Site(torch.float32)
    exported = torch.export.export(site, (site.x,))
    assert torch.equal(exported.module()(site.x), site(site.x))
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {
        "trimtab.keep_topk.default",
        "trimtab.keep_above.default",
        "trimtab.sparse_linear.default",
    } <= called


@pytest.mark.usefixtures("compiled")
def test_what_runs_has_a_name():
    for dtype in (torch.float32, torch.bfloat16):
        name = kernel_name("cpu", dtype)
        kind = str(dtype).removeprefix("torch.")
        assert name.startswith("C++ ")
        assert name.endswith(f" gather-GEMV, {kind}, 1 thread")
        assert kernel_name("cuda", torch.bfloat16) == "Triton split-K gather-GEMV, bfloat16"
    assert kernel_name("cpu", torch.float64) == (
        "reference: dense masked product in PyTorch (no kernel for float64 on cpu)"
    )
    assert "reference" in kernel_name("cuda", torch.float32)
    assert "reference" in kernel_name("cpu", torch.float64, tokens=100)
    assert kernel_name("cuda", torch.bfloat16, 2) == "dense masked product in PyTorch, bfloat16"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_name_for_a_number_of_tokens_is_of_what_runs_for_it(dtype):
    few = gather_tokens("cpu", dtype)
    assert (few > 0) == (dtype != torch.float64)
    for tokens in {1, few, few + 1} - {0}:
        x, weight, _ = draw(24, 17, dtype, tokens)
        x[:, 3], weight[3] = 0, torch.inf  # a product that reads the row is not finite
        leaves_unread = bool(sparse_linear(x, weight).isfinite().all())
        assert leaves_unread == ("gather" in kernel_name("cpu", dtype, tokens)) == (tokens <= few)
