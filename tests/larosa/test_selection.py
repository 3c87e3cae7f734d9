from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ContinuousBatchingConfig

from tests.conftest import random_inputs
from tests.generation.models import TOKENIZER, stock
from tests.generation.models import Recorder as LogitsRecorder
from tests.models.contract import assert_equal, draw, stepwise
from trimtab.generation import Engine
from trimtab.larosa import Allocation, Count, LaRoSA, Prefill, Selection, Transforms
from trimtab.larosa.plan import SitePlan
from trimtab.larosa.selection import Positions, Recorder, Selector
from trimtab.models.sources import DType
from trimtab.vattention.settings import CacheSettings

EVERYWHERE = Positions(0, Prefill.sparse)


def selector(selection: Selection, sparsity: float = 0.3, **more) -> Selector:
    plan = SitePlan("plain", sparsity, more.pop("threshold", 0.5))
    positions = more.pop("positions", EVERYWHERE)
    return Selector("h1", plan, selection, more.pop("cap", 1.5), positions, Recorder(**more))


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return activations with ties and zeros."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return ((x * 4).round() / 4).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
def test_topk_keeps_exactly_k_of_every_token(dtype, sparsity):
    x = activations(4, 7, 30, dtype=dtype) + 0.125  # ties, but no zeros
    kept = selector(Selection.topk, sparsity)(x)
    count = 30 - round(30 * sparsity)
    assert ((kept != 0).sum(-1) == count).all()
    assert torch.equal(kept[kept != 0], x[kept != 0])
    magnitudes = x.abs().sort(dim=-1, descending=True).values
    assert torch.equal(kept.abs().sort(-1, descending=True).values[..., :count],
                       magnitudes[..., :count])  # fmt: skip


def test_a_threshold_keeps_what_reaches_it_and_no_more():
    x = activations(4, 7, 30)
    kept = selector(Selection.threshold, threshold=0.5)(x)
    assert torch.equal(kept, x * (x.abs() >= 0.5))
    assert torch.equal(selector(Selection.threshold, threshold=0.0)(x), x)


@pytest.mark.parametrize("cap", [1.0, 1.2, 4.0])
def test_capped_is_the_threshold_but_for_tokens_that_would_keep_more(cap):
    x = activations(5, 9, 30)
    kept = selector(Selection.capped, 0.5, threshold=0.5, cap=cap)(x)
    passing = x * (x.abs() >= 0.5)
    most = min(30, round(cap * 15))
    over = (passing != 0).sum(-1) > most
    assert ((kept != 0).sum(-1)[over] == most).all()
    assert torch.equal(kept[~over], passing[~over])
    assert over.any() == (cap < 2)
    assert (~over).any()


@pytest.mark.parametrize("flat", [False, True], ids=["batched", "flattened"])
def test_the_first_positions_of_every_row_stay_dense_also_where_rows_are_flattened(flat):
    positions = Positions(3, Prefill.sparse, length=8, dense=3)
    part = selector(Selection.topk, 0.6, positions=positions, on=True)
    x = activations(2, 8, 20) + 0.125
    found = part(x.flatten(0, 1)).reshape(x.shape) if flat else part(x)
    assert torch.equal(found[:, :3], x[:, :3])
    assert ((found[:, 3:] != 0).sum(-1) == 8).all()
    assert part.counts.tolist() == [2 * (3 * 20 + 5 * 8), 2 * 8 * 20]


def test_what_is_kept_is_counted_only_while_recording():
    part = selector(Selection.threshold, threshold=0.5)
    x = activations(3, 5, 30)
    part(x)
    assert part.counts.tolist() == [0, 0]
    part.recorder.on = True
    part(x)
    part(x)
    kept = int((x.abs() >= 0.5).sum())
    assert part.counts.tolist() == [2 * kept, 2 * x.numel()]


class Cache:
    def __init__(self, length: int) -> None:
        self.get_seq_length = lambda: length


@pytest.mark.parametrize(
    ("prefix", "prefill", "cached", "length", "dense"),
    [
        (4, Prefill.sparse, None, 10, 4),
        (4, Prefill.sparse, 0, 3, 3),  # the prefix goes on in the next pass
        (4, Prefill.sparse, 3, 5, 1),
        (4, Prefill.sparse, 3, 1, 1),
        (4, Prefill.sparse, 4, 1, 0),
        (0, Prefill.dense, None, 10, 10),
        (0, Prefill.dense, 0, 10, 10),
        (0, Prefill.dense, 10, 1, 0),
        (0, Prefill.dense, 10, 5, 0),  # not the first pass of the text
        (0, Prefill.dense, None, 1, 1),  # a prompt of one token
        (0, Prefill.dense, 0, 1, 1),
        (2, Prefill.dense, 0, 9, 9),
    ],
)
def test_where_in_its_text_the_model_is(prefix, prefill, cached, length, dense):
    positions = Positions(prefix, prefill)
    given = {} if cached is None else {"past_key_values": Cache(cached)}
    ids = torch.zeros(2, length, dtype=torch.int64)
    for args, tokens in (
        ((ids,), {}),
        ((), {"input_ids": ids}),
        ((), {"input_ids": None, "inputs_embeds": torch.zeros(2, length, 8)}),
    ):
        positions.observe(torch.nn.Identity(), args, {**given, **tokens})
        assert (positions.length, positions.dense) == (length, dense)


@pytest.mark.parametrize(("prefix", "first_step"), [(0, 0), (7, 1)])
def test_texts_in_one_row_are_each_in_a_prompt_or_not(prefix, first_step):
    """A chunk of a prompt, decode steps at 6 and 9, and a prompt of one token."""
    positions = Positions(prefix, Prefill.dense)
    given = {
        "position_ids": torch.tensor([[3, 4, 5, 6, 9, 0]]),
        "cu_seq_lens_q": torch.tensor([0, 3, 4, 5, 6], dtype=torch.int32),
    }
    positions.observe(torch.nn.Identity(), (torch.zeros(1, 6, dtype=torch.int64),), given)
    assert positions.rows.tolist() == [[1, 1, 1, first_step, 0, 1]]


@pytest.mark.parametrize("prefix", [0, 12])
def test_continuous_batching_leaves_dense_what_generate_does(corpus, prefix):
    model, applied = made_sparse("tiny-llama", DType.float32, corpus)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompts = [[5, 6, 7], [*range(40, 51)]]
    with applied(prefill=Prefill.dense, dense_prefix=prefix):
        expected = [stock(model, prompt, 8) for prompt in prompts]
        found = model.generate_batch(
            inputs=prompts, max_new_tokens=8,
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32),
        )  # fmt: skip
    assert [found[name].generated_tokens for name in sorted(found)] == expected


class Repeats:
    """Proposes the last token again, twice."""

    def __init__(self, newest: int = 0) -> None:
        self.newest = newest

    def start(self, ids: list[int]) -> Repeats:
        return Repeats(ids[-1])

    def accept(self, tokens: list[int]) -> None:
        self.newest = [self.newest, *tokens][-1]

    def propose(self, limit: int) -> list[tuple[int, float]]:
        return [(self.newest, 1.0)] * min(limit, 2)


def made_sparse(name: str, dtype: DType, corpus):
    """Return a model, and what applies LaRoSA to it with further settings."""
    loaded = draw(name, dtype, tied=True)
    common = {
        "sparsity": 0.6, "count": Count.nominal, "transforms": Transforms.all, "tokens": 512,
        "window": 64, "probe_tokens": 128, "selection": Selection.topk,
        "allocation": Allocation.uniform, "dense_prefix": 0,
    }  # fmt: skip
    artifact = LaRoSA(**common).calibrate(loaded.model, loaded.tokenizer, corpus)

    def applied(**more):
        method = LaRoSA(**{**common, **more})
        own = replace(artifact, key=replace(artifact.key, config=method.config()))
        return method.apply(loaded.model, loaded.tokenizer, own)

    return loaded.model, applied


NAMES = ["tiny-llama", "tiny-opt", "tiny-gemma3"]


@pytest.fixture(scope="module", params=NAMES)
def sparse(request, corpus):
    return made_sparse(request.param, DType.float64, corpus)


@pytest.fixture(scope="module", params=NAMES)
def sparse_float32(request, corpus):
    return made_sparse(request.param, DType.float32, corpus)


@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("drafter", [None, Repeats()])
@pytest.mark.parametrize(
    "more",
    [
        {"dense_prefix": 7},
        {"prefill": Prefill.dense},
        {"dense_prefix": 14, "prefill": Prefill.dense},
    ],
)
def test_the_engine_leaves_dense_what_generate_does(sparse_float32, more, drafter, chunk):
    model, applied = sparse_float32
    # Prompts of several chunks or all in one pass, and of fewer tokens than stay dense; a draft
    # decodes alone.
    prompts = [[5, 6, 7], [*range(40, 51)], [9]][: 1 if drafter else None]
    recorder, expected = LogitsRecorder(), []
    cache = CacheSettings(prefill_chunk=chunk, page_group=4096)
    with applied(**more):
        for prompt in prompts:
            output = model.generate(
                torch.tensor([prompt]), do_sample=False, min_new_tokens=9, max_new_tokens=9,
                pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            expected.append(torch.cat(output.logits))
        with Engine(model, TOKENIZER, slots=3, max_len=64, cache=cache, drafter=drafter) as engine:
            engine.generate(prompts, max_new_tokens=9, logits_processors=recorder)
    for index, logits in enumerate(expected):
        torch.testing.assert_close(recorder.of(index), logits, atol=1e-4, rtol=0)  # of up to 10
    assert engine.stats.verify_steps > 0 or drafter is None


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_the_padding_of_a_batch_is_not_the_beginning_of_its_texts(sparse, static, explicit):
    """Alone or padded, on either side, with positions or without, in one pass or in generate."""
    model, applied = sparse
    texts = [random_inputs(1, size)[0] for size in (3, 9, 6)]
    left = pad_sequence(texts, batch_first=True, padding_side="left")
    sides = {"left": left, "right": pad_sequence(texts, batch_first=True)}
    options: dict[str, Any] = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
    if static:
        options |= {"cache_implementation": "static", "disable_compile": True}
    with applied(dense_prefix=5):
        alone = [model(text[None]).logits[0] for text in texts]
        for side, ids in sides.items():
            sizes = torch.tensor([len(text) for text in texts])[:, None]
            place = torch.arange(9).expand(3, 9)
            mask = (place >= 9 - sizes) if side == "left" else (place < sizes)
            ids_given = {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
            found = model(ids, mask.long(), **(ids_given if explicit else {})).logits
            for row, logits in enumerate(alone):
                assert_equal(found[row][mask[row]], logits)
        continued = [model.generate(text[None], **options)[0, len(text) :] for text in texts]
        mask = (torch.arange(9) >= 9 - sizes).long()
        output = model.generate(left, attention_mask=mask, **options)
    assert torch.equal(output[:, 9:], torch.stack(continued))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("prefix", [0, 1])
def test_a_prompt_in_chunks_is_dense_in_the_first_pass_of_its_own_row(sparse, prefix, static):
    """Padding of whole chunks, so that each text is divided as it is alone."""
    model, applied = sparse
    sizes = torch.tensor([11, 3, 7])
    texts = [random_inputs(1, int(size))[0] for size in sizes]
    left = pad_sequence(texts, batch_first=True, padding_side="left")
    mask = (torch.arange(11) >= 11 - sizes[:, None]).long()
    options: dict[str, Any] = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
    options["prefill_chunk_size"] = 4
    if static:
        options |= {"cache_implementation": "static", "disable_compile": True}
    with applied(prefill=Prefill.dense, dense_prefix=prefix):
        alone = [model.generate(text[None], **options)[0, len(text) :] for text in texts]
        found = model.generate(left, attention_mask=mask, **options)[:, 11:]
    assert torch.equal(found, torch.stack(alone))


def test_a_compiled_model_is_where_in_its_text_each_pass_is(sparse_float32):
    model, applied = sparse_float32
    ids, mask = random_inputs(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :5] = 0
    passes = [(ids[:1], None), (ids, mask), (ids[:, :1], None), (ids, None)]
    with applied(dense_prefix=4), torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        for given in passes:
            torch.testing.assert_close(compiled(*given).logits, model(*given).logits)
    torch.compiler.reset()


def test_two_threads_are_each_at_a_place_of_their_own():
    positions, ids = Positions(4, Prefill.sparse), torch.zeros(1, 6, dtype=torch.int64)
    positions.observe(torch.nn.Identity(), (ids,), {})

    def other() -> tuple[int, int]:
        positions.observe(torch.nn.Identity(), (ids[:, :1],), {"past_key_values": Cache(9)})
        return positions.length, positions.dense

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(other).result() == (1, 0)
    assert (positions.length, positions.dense) == (6, 4)
    assert copy.deepcopy(positions).dense_prefix == 4


def test_a_dense_prefix_predicts_what_the_dense_model_does(sparse):
    model, applied = sparse
    ids = random_inputs(2, 12)
    dense = model(ids).logits
    with applied(dense_prefix=4):
        found, steps = model(ids).logits, stepwise(model, ids, 3)
    assert_equal(found[:, :4], dense[:, :4])
    assert not torch.allclose(found[:, 4:], dense[:, 4:], rtol=1e-2)
    assert_equal(steps, found)
    with applied(dense_prefix=12):
        assert_equal(model(ids).logits, dense)
    with applied():
        assert not torch.allclose(model(ids).logits[:, 0], dense[:, 0], rtol=1e-2)


def test_a_dense_prompt_is_followed_by_sparse_steps(sparse):
    model, applied = sparse
    ids = random_inputs(2, 12)
    dense = model(ids).logits
    with applied(prefill=Prefill.dense) as method:
        found = stepwise(model, ids, 5)
        with method.recording():
            stepwise(model, ids, 5)
        sites = method.measured()["sparsity"]["sites"]
    assert_equal(found[:, :5], dense[:, :5])
    assert not torch.allclose(found[:, 5], dense[:, 5], rtol=1e-2)
    # Five of twelve positions are dense.
    assert sites["h1"] == pytest.approx(round(0.6 * 64) / 64 * 7 / 12)


def test_what_watches_the_positions_leaves_with_the_method(sparse):
    model, applied = sparse

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in model.modules())

    with applied():
        assert hooks() == 0
    with applied(dense_prefix=1):
        assert hooks() == 1
    assert hooks() == 0
