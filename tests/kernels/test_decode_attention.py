"""Decode attention and append on the CPU, compared with float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tests.conftest import ROOT
from tests.kernels.attention_cases import Case, assert_close_to_float64, draw, expected
from trimtab_kernels import reference
from trimtab_kernels.decode_attention import append_kv, decode_attention, kernel_name

COMPILED = [torch.float32, torch.bfloat16]
DTYPES = [*COMPILED, torch.float16, torch.float64]
OPERATORS = torch.ops.trimtab


@st.composite
def cases(draw_from):
    max_len = draw_from(st.sampled_from([1, 3, 64, 70, 300, 600]))
    edges = [n for n in (0, 1, 4, 63, 64, 65, 255, 256, 257, 513, max_len) if n <= max_len]
    length = st.one_of(st.sampled_from(edges), st.integers(0, max_len))
    return draw(
        lengths=draw_from(st.lists(length, min_size=1, max_size=4)),
        dtype=draw_from(st.sampled_from(DTYPES)),
        group=draw_from(st.sampled_from([1, 3, 4, 7, 8])),
        kv_heads=draw_from(st.integers(1, 3)),
        width=draw_from(st.sampled_from([1, 16, 24, 64, 80, 96, 100])),
        max_len=max_len,
        window=draw_from(st.one_of(st.none(), st.integers(1, max_len + 2))),
        softcap=draw_from(st.one_of(st.none(), st.floats(0.5, 50))),
        gaps=draw_from(st.tuples(*[st.integers(0, 9)] * 3)),
        seed=draw_from(st.integers(0, 2**31)),
    )


@settings(max_examples=150)
@given(case=cases())
def test_both_versions_agree_with_float64_and_read_nothing_else(case):
    assert_close_to_float64(decode_attention(*case.arguments), case)
    assert_close_to_float64(reference.decode_attention(*case.arguments), case)


@pytest.mark.parametrize(("group", "window"), [(1, None), (4, 5), (3, 100)])
def test_the_reference_is_the_librarys_attention_of_each_slot(group, window):
    case = draw([1, 7, 90], torch.float64, group, window=window)
    found = reference.decode_attention(*case.arguments)
    for slot, length in enumerate(case.lengths.tolist()):
        keys, values = (
            cache[slot, max(0, length - (window or length)) : length]
            .transpose(0, 1)
            .repeat_interleave(group, 0)
            for cache in (case.keys, case.values)
        )
        row = scaled_dot_product_attention(
            case.query[slot][:, None], keys, values, scale=case.scale
        )
        torch.testing.assert_close(found[slot], row[:, 0], rtol=1e-12, atol=1e-12)


def test_a_softcap_bounds_scores_and_leaves_small_ones():
    case = draw([2], torch.float64, group=1, kv_heads=1, width=1)
    case.query[:], case.scale, case.softcap = 1, 1, 2.0
    case.keys[0, :, 0, 0], case.values[0, :, 0, 0] = torch.tensor([[1000.0, 0.001], [1.0, 0.0]])
    for form in (decode_attention, reference.decode_attention):
        weight = torch.sigmoid(torch.tensor(2.0 - 0.001))
        assert form(*case.arguments).item() == pytest.approx(weight.item(), rel=1e-6)


def test_inaccessible_memory_is_not_accessed():
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.kernels.guarded_cases"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize("window", [None, 300])
def test_a_slot_is_the_same_bit_for_bit_with_any_other_slots_and_threads(threads, dtype, window):
    lengths = [600, 0, 1, 257, 1300]
    case = draw(lengths, dtype, width=80, window=window, max_len=1400)
    together = decode_attention(*case.arguments)
    torch.set_num_threads(1)
    for slot in range(len(lengths)):
        assert torch.equal(decode_attention(*case.slot(slot).arguments)[0], together[slot])
    other = draw([9, 1400, 800, 257, 64], dtype, width=80, window=window, seed=1)
    for name in ("query", "keys", "values"):
        getattr(other, name)[3] = getattr(case, name)[3]
    assert torch.equal(decode_attention(*other.arguments)[3], together[3])


@pytest.mark.parametrize("dtype", COMPILED)
def test_nan_stays_in_its_slot_and_its_head(dtype):
    case = draw([70, 70], dtype, group=2, kv_heads=2)
    case.keys[0, 3, 1, 5] = torch.nan
    found = decode_attention(*case.arguments)
    assert found[0, 2:].isnan().all()
    assert found[0, :2].isfinite().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("dtype", COMPILED)
def test_scores_of_minus_infinity_weigh_nothing(dtype):
    case = draw([130], dtype, group=1, kv_heads=1)
    case.query.fill_(4.0)
    case.keys[0, :70] = -1e38
    found = decode_attention(*case.arguments)
    rest = Case(case.query, case.keys[:, 70:], case.values[:, 70:], case.lengths - 70, case.scale)
    torch.testing.assert_close(found.double(), expected(rest), rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_can_be_written_to_a_given_tensor(dtype):
    case = draw([5, 0, 9], dtype)
    out = torch.full_like(case.query, torch.nan)
    assert decode_attention(*case.arguments, out=out) is out
    assert torch.equal(out, decode_attention(*case.arguments))
    assert not out[1].any()


def test_a_query_and_lengths_may_be_strided():
    case = draw([5, 0, 9], torch.float32)
    spread = torch.stack([case.query, case.query], -1)[..., 0]
    lengths = torch.stack([case.lengths, case.lengths], -1)[:, 0]
    found = decode_attention(spread, case.keys, case.values, lengths, case.scale)
    assert torch.equal(found, decode_attention(*case.arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [append_kv, reference.append_kv])
def test_an_append_writes_one_token_a_slot_and_nothing_else(form, dtype):
    case = draw([5, 0, 9, 1], dtype, gaps=(1, 3, 7))
    key, value = (torch.randn(4, 24, 2).to(dtype).transpose(1, 2) for _ in range(2))
    wanted = []
    for cache, token in ((case.keys, key), (case.values, value)):
        whole = torch.empty(0, dtype=dtype).set_(cache.untyped_storage())
        copy = whole.clone().as_strided(cache.shape, cache.stride(), cache.storage_offset())
        for slot, length in ((0, 5), (2, 9), (3, 1)):
            copy[slot, length - 1] = token[slot]
        wanted.append((whole, torch.empty(0, dtype=dtype).set_(copy.untyped_storage())))
    form(case.keys, case.values, key, value, case.lengths)
    for whole, copy in wanted:
        assert torch.equal(whole.nan_to_num(7.0), copy.nan_to_num(7.0))


def test_sizes_of_zero():
    for shape in ((0, 5, 2, 8), (2, 0, 2, 8), (2, 5, 2, 0)):
        cache, counts = torch.ones(shape), torch.zeros(shape[0], dtype=torch.int32)
        query = torch.ones(shape[0], 4, shape[3])
        for form in (decode_attention, reference.decode_attention):
            assert torch.equal(form(query, cache, cache, counts, 1.0), torch.zeros_like(query))
        append_kv(cache, cache, cache[:, :1].sum(1), cache[:, :1].sum(1), counts)


@pytest.mark.parametrize("dtype", [*COMPILED, torch.float64])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, 2.0)])
def test_operators_pass_pytorchs_checks(dtype, window, softcap):
    case = draw([5, 0, 9], dtype, window=window, softcap=softcap, gaps=(1, 2, 3))
    case.keys.nan_to_num_()
    case.values.nan_to_num_()
    check = torch.library.opcheck
    check(OPERATORS.decode_attention.default, case.arguments)
    check(OPERATORS.decode_attention.out, case.arguments, {"out": torch.empty_like(case.query)})
    key, value = torch.randn(2, 3, 2, 24).to(dtype)
    check(OPERATORS.append_kv.default, (case.keys, case.values, key, value, case.lengths))


def step(query, keys, values, key, value, lengths):
    lengths = lengths + 1
    append_kv(keys, values, key, value, lengths)
    return decode_attention(query, keys, values, lengths, 0.3, softcap=2.0) * 2, lengths


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_through_a_step_without_a_break(dynamic):
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for run in (step, compiled):
        case = draw([5, 0, 9], torch.float32, max_len=12)
        key, value = torch.randn(2, 3, 2, 24, generator=torch.Generator().manual_seed(1))
        lengths = case.lengths
        for _ in range(3):
            found, lengths = run(case.query, case.keys, case.values, key, value, lengths)
        results.append((found, case.keys.nan_to_num(7.0), case.values.nan_to_num(7.0)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("compiled")
def test_what_runs_has_a_name():
    for dtype in COMPILED:
        name = kernel_name("cpu", dtype)
        assert name.startswith("C++ ")
        assert name.endswith(f" decode attention, {str(dtype).removeprefix('torch.')}, 1 thread")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert kernel_name("cuda", dtype).startswith("Triton split-K decode attention, ")
    for device, dtype in (("cpu", "float16"), ("cpu", "float64"), ("cuda", "float64")):
        assert kernel_name(device, getattr(torch, dtype)) == (
            f"reference: one slot at a time in PyTorch (no kernel for {dtype} on {device})"
        )


Q, C, N = torch.ones(2, 4, 8), torch.ones(2, 5, 2, 8), torch.ones(2, dtype=torch.int32)
T = torch.ones(2, 2, 8)
SWAPPED = torch.ones(2, 5, 8, 2).transpose(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q.long(), C, C, N, 1.0), "query is torch.int64; expected float32"),
        ((Q[0], C, C, N, 1.0), r"query has shape \[4, 8\]; expected \[2, a multiple of 2, 8\]"),
        ((Q[:, :3], C, C, N, 1.0), r"query has shape \[2, 3, 8\]; expected \[2, a multiple of 2"),
        ((Q[:1], C, C, N, 1.0), r"query has shape \[1, 4, 8\]; expected \[2, a multiple"),
        (
            (Q[..., :7], C, C, N, 1.0),
            r"query has shape \[2, 4, 7\]; expected .* of 2, 8\] for keys",
        ),
        ((Q, C[:, :, :0], C[:, :, :0], N, 1.0), r"expected \[2, a multiple of 0, 8\]"),
        (
            (Q, C.double(), C.double(), N, 1.0),
            "keys is torch.float64 on cpu; expected torch.float32",
        ),
        ((Q, C[0], C, N, 1.0), r"keys has shape \[5, 2, 8\]; expected \[slots, max_len, kv_heads"),
        ((Q, C, C[:, :4], N, 1.0), r"values has shape \[2, 4, 2, 8\]; expected \[2, 5, 2, 8\] as"),
        ((Q, C, C.half(), N, 1.0), "values is torch.float16 on cpu; expected .* as keys is"),
        (
            (Q, SWAPPED, C, N, 1.0),
            r"keys has strides \[80, 16, 1, 2\]; expected a last stride of 1",
        ),
        ((Q, C, SWAPPED, N, 1.0), r"values has strides .*; expected a last stride of 1"),
        (
            (Q, C, C, N.long(), 1.0),
            r"lengths is torch.int64 of shape \[2\] on cpu; expected .*int32",
        ),
        ((Q, C, C, N[:1], 1.0), r"lengths is torch.int32 of shape \[1\] .* of shape \[2\] on cpu"),
        ((Q, C, C, N, 1.0, 0), "window=0; expected at least 1 or None"),
        ((Q, C, C, N, 1.0, None, 0.0), "softcap=0.*; expected a number above 0 or None"),
        ((Q, C, C, N, 1.0, None, torch.nan), "softcap=nan; expected a number above 0"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_does_not_fit_is_refused(device, arguments, message):
    with pytest.raises(ValueError, match=message.replace("on cpu", f"on {device}")):
        decode_attention(*on(device, arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((C, C, T[0], T, N), r"key has shape \[2, 8\]; expected \[2, 2, 8\] for keys of shape"),
        ((C, C, T, T[..., :4], N), r"value has shape \[2, 2, 4\]; expected \[2, 2, 8\]"),
        (
            (C, C, T.half(), T, N),
            "key is torch.float16 on cpu; expected torch.float32 on cpu as keys",
        ),
        ((C, C, T, T, N.long()), "lengths is torch.int64"),
        ((C, C[:1], T, T, N), r"values has shape \[1, 5, 2, 8\]"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_append_that_does_not_fit_is_refused(device, arguments, message):
    with pytest.raises(ValueError, match=message.replace("on cpu", f"on {device}")):
        append_kv(*on(device, arguments))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_result_that_does_not_fit_is_refused(device):
    q, c, n = on(device, (Q, C, N))
    for out, message in (
        (torch.ones(2, 4, 9, device=device), r"out has shape \[2, 4, 9\].* contiguous \[2, 4, 8\]"),
        (q.transpose(0, 1).contiguous().transpose(0, 1), r"strides \[8, 16, 1\]; expected cont"),
        (
            q.half(),
            f"out is torch.float16 on {device}; expected torch.float32 on {device} as query",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            decode_attention(q, c, c, n, 1.0, out=out)


@pytest.mark.parametrize(
    "forms",
    [(decode_attention, append_kv), (reference.decode_attention, reference.append_kv)],
    ids=["operator", "reference"],
)
@pytest.mark.parametrize("length", [-1, 6])
def test_a_length_outside_the_cache_is_refused(forms, length):
    attend, append = forms
    lengths = torch.tensor([5, length], dtype=torch.int32)
    before = C.clone()
    for call in (lambda: attend(Q, C, C, lengths, 1.0), lambda: append(C, C, T, T, lengths)):
        with pytest.raises(ValueError, match=rf"lengths\[1\]={length} is outside \[0, 5\]"):
            call()
    assert torch.equal(C, before)


def on(device, arguments):
    return [item.to(device) if isinstance(item, torch.Tensor) else item for item in arguments]
