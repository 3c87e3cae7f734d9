"""The executor's choice of a token, by an int8 copy of the head, is the argmax of its logits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import random_inputs
from tests.generation.models import VARIANTS, model_of
from tests.models.plan_contract import LENGTH, empty_cache, plan_of, steps_of
from trimtab.corpora import PythonDocs
from trimtab.corpus import Split, encode, load_corpus
from trimtab.models.loading import LoadedModel
from trimtab.models.sources import DType
from trimtab_kernels.decode_step import DecodePlan, Linear, cpu

DTYPES = [DType.float32, DType.bfloat16]
PLANS = {dtype: plan_of(model_of("llama", dtype)) for dtype in DTYPES}
WIDTH = 64


assert cpu.unavailable(torch.float32, torch.device("cpu")) is None


def executor_of(plan: DecodePlan, model_dtype: DType = DType.float32) -> cpu.CpuExecutor:
    executor = cpu.CpuExecutor(plan, *empty_cache(model_of("llama", model_dtype), 3))
    executor.refresh_head()
    return executor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_token_is_the_argmax_of_the_logits(variant, dtype):
    model = model_of(variant, dtype)
    executor = cpu.CpuExecutor(plan_of(model), *empty_cache(model, 3))
    assert executor.has_quantized_head
    weight = plan_of(model).head.weight
    assert executor.head_copy_bytes == weight.numel() + 8 * max(weight.shape)
    assert executor.unread_head_bytes == weight.nbytes - executor.head_copy_bytes
    executor.refresh_head()
    for step in steps_of(random_inputs(2, LENGTH)):
        expected = executor.step(*step).argmax(-1)
        assert torch.equal(executor.choose(*step), expected)


def rows_of(kind: str, directions: Tensor, random: torch.Generator) -> Tensor:
    """Return rows of a head, of which many have nearly the largest logit, or exactly."""
    rows = torch.randn(320, WIDTH, generator=random)
    near = torch.randperm(320, generator=random)[:40]
    along = directions[torch.randint(len(directions), (40,), generator=random)]
    rows[near] = 4 * along
    if kind == "nearly equal":
        rows[near] *= 1 + 1e-6 * torch.randn(40, 1, generator=random)
    elif (
        kind == "misjudged"
    ):  # in int8, some logits are as much too small as can be, others too large
        codes = (100 * along / along.abs().amax(-1, keepdim=True)).round()
        codes += torch.randint(-20, 21, (40, WIDTH), generator=random)
        codes += 0.49 * along.sign() * torch.tensor([[1.0], [-1.0]]).repeat(20, 1)
        codes[:, 0] = 127.0
        rows[near] = codes * 4 / (codes * along).mean(-1, keepdim=True)
        rows[near] *= 1 + 1e-4 * torch.rand(40, 1, generator=random)
    elif kind == "outliers":  # all but one number of a row are lost in int8
        rows[torch.arange(320), torch.randint(WIDTH, (320,), generator=random)] *= 1e4
    elif kind == "tiny":
        rows *= 1e-38
    elif kind == "zero":
        rows.zero_()
    elif kind == "not finite":
        numbers = torch.tensor([torch.nan, torch.inf, -torch.inf])
        rows[near[:3], :5] = numbers[torch.randint(3, (3, 1), generator=random)]
    return rows


@pytest.mark.parametrize("softcap", [None, 0.5, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["equal", "nearly equal", "misjudged", "outliers", "tiny", "zero", "not finite"]
)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_ties_and_near_ties_are_decided_as_by_the_logits(kind, dtype, softcap, seed):
    plan, random = PLANS[dtype], torch.Generator().manual_seed(seed)
    tokens = torch.randint(320, (5,), generator=random)
    step = tokens, torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 0, 0, 1])
    # With the identity as its head, an executor returns what the head reads.
    identity = Linear(torch.eye(WIDTH, dtype=plan.head.weight.dtype))
    read = executor_of(replace(plan, head=identity), dtype).step(*step).float()
    head = rows_of(kind, read, random).to(plan.head.weight.dtype)
    executor = executor_of(replace(plan, head=Linear(head.T), softcap=softcap), dtype)
    assert torch.equal(executor.choose(*step), executor.step(*step).argmax(-1))


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "activations"), [(1e-43, 1e35), (1e30, 1e8), (1e3, 1e36)])
def test_numbers_close_to_the_ends_of_their_range_are_decided_as_by_the_logits(
    rows, activations, dtype, softcap
):
    plan = PLANS[dtype]
    norm = replace(plan.final_norm, weight=plan.final_norm.weight * activations)
    step = torch.arange(8) * 9, torch.arange(8) // 4, torch.arange(8) % 4
    for seed in range(8):
        head = torch.randn(320, WIDTH, generator=torch.Generator().manual_seed(seed)) * rows
        changed = replace(
            plan, final_norm=norm, head=Linear(head.to(norm.weight.dtype).T), softcap=softcap
        )
        executor = executor_of(changed, dtype)
        assert torch.equal(executor.choose(*step), executor.step(*step).argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changed", [slice(None), (slice(None, None, 2),), (slice(None), 5)])
def test_the_copy_follows_changed_signs(changed, dtype):
    plan = PLANS[dtype]
    head = torch.randn(1024, WIDTH, generator=torch.Generator().manual_seed(1))
    head = head.to(plan.head.weight.dtype)
    executor = executor_of(replace(plan, head=Linear(head.T)), dtype)
    step = torch.arange(8) * 9, torch.arange(8) // 4, torch.arange(8) % 4
    head[changed].neg_()
    executor.refresh_head()
    assert torch.equal(executor.choose(*step), executor.step(*step).argmax(-1))


def test_the_copy_follows_the_head():
    plan = PLANS[DType.float32]
    head = torch.randn(320, WIDTH)
    executor = executor_of(replace(plan, head=Linear(head.T)))
    step = torch.tensor([7]), torch.tensor([0]), torch.tensor([0])
    first = executor.choose(*step)
    head[(first + 100) % 320] = 10 * head[first]
    executor.refresh_head()
    assert executor.choose(*step) == (first + 100) % 320
    head.data[5, 3] += 1e6 * executor.step(*step).abs().max()
    executor.refresh_head()
    assert executor.choose(*step) == executor.step(*step).argmax(-1)


def test_the_logits_that_the_head_itself_is_read_for_are_counted():
    plan = PLANS[DType.float32]
    step = torch.tensor([7]), torch.tensor([0]), torch.tensor([0])
    read = executor_of(replace(plan, head=Linear(torch.eye(WIDTH)))).step(*step)
    head = torch.zeros(320, WIDTH)
    executor = executor_of(replace(plan, head=Linear(head.T)))
    assert math.isnan(executor.exact_logits)
    executor.choose(*step)
    assert executor.exact_logits == 320  # equal ones, of which none is ruled out
    head[9] = read[0]
    executor.refresh_head()
    executor.choose(*step)
    assert executor.exact_logits == (320 + 1) / 2


def test_a_head_that_is_not_quantized_chooses_too():
    plan = PLANS[DType.float32]
    step = torch.tensor([7]), torch.tensor([0]), torch.tensor([0])
    for head in (
        Linear(torch.randn(WIDTH, 320)),
        Linear(torch.randn(320, WIDTH).T, torch.randn(320)),
    ):
        executor = executor_of(replace(plan, head=head))
        assert not executor.has_quantized_head
        assert executor.head_copy_bytes == executor.unread_head_bytes == 0
        assert executor.choose(*step) == executor.step(*step).argmax(-1)
        assert executor.exact_logits == 320


def test_a_choice_before_the_copy_is_made_is_refused():
    executor = cpu.CpuExecutor(PLANS[DType.float32], *empty_cache(model_of(), 3))
    with pytest.raises(ValueError, match="the head is not quantized"):
        executor.choose(torch.tensor([7]), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.smollm2
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most", [960, pytest.param(None, id="all", marks=pytest.mark.exhaustive)])
def test_on_held_out_text_a_real_models_token_is_the_argmax_of_its_logits(
    smollm2: LoadedModel, most, dtype
):
    """The text is cut into pieces, as long as the plan's positions, that are read by themselves."""
    model = smollm2.model
    if dtype != DType.float32:
        model = copy.deepcopy(model).to(getattr(torch, dtype))
    corpus = load_corpus(PythonDocs(calibration=0.7, validation=0.1, max_documents=None))
    documents = corpus.documents(Split.test)
    tokens = [token for one in documents for token in encode(smollm2.tokenizer, one.text)]
    text = torch.tensor(tokens[: len(tokens) if most is None else most])
    executor = cpu.CpuExecutor(plan_of(model), *empty_cache(model, 1))
    executor.refresh_head()
    slots, positions = torch.zeros(LENGTH, dtype=torch.long), torch.arange(LENGTH)
    for piece in text.split(LENGTH):
        step = piece, slots[: len(piece)], positions[: len(piece)]
        expected = executor.step(*step).argmax(-1)
        assert torch.equal(executor.choose(*step), expected)
