"""One model in many hands: several engines, decode_kernel, methods and threads, in any order."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import trimtab
from tests.conftest import tiny
from tests.generation.models import TOKENIZER, engine_for, model_of, prompts_of, stock
from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.fingerprint import fingerprint
from trimtab.vattention import decode_kernel

PROMPTS = prompts_of(5, 9, 3)
TEXTS = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
NEW = 6
SMALL = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(windows=2, window_bytes=256, context_bytes=32),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
)


@pytest.fixture(scope="module")
def larosa() -> trimtab.Artifact:
    method = trimtab.LaRoSA(tokens=512, probe_tokens=256, window=64, dense_prefix=4)
    return trimtab.calibrate(tiny().model, TOKENIZER, method, TEXTS)


@pytest.fixture(scope="module")
def words() -> trimtab.Artifact:
    method = trimtab.AdaptiVocab(
        mode="full", max_bpb_increase=None, size=20, tokens=128, validation_tokens=128, window=64
    )
    return trimtab.calibrate(tiny().model, TOKENIZER, method, TEXTS)


def tokens_of(engine: Any, prompts: Any = PROMPTS) -> list[list[int]]:
    return [one.tokens for one in engine.generate(prompts, max_new_tokens=NEW)]


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Assert that after the block the model is what it was before."""

    def look() -> list[Any]:
        return [
            model.config._attn_implementation,
            model.config.vocab_size,
            [type(module) for module in model.modules()],
            [module.training for module in model.modules()],
            [one.requires_grad for one in model.parameters()],
        ]

    weights, before = copy.deepcopy(model.state_dict()), look()
    yield
    assert look() == before
    assert all(torch.equal(weights[name], one) for name, one in model.state_dict().items())


def test_engines_on_one_model_may_be_left_in_the_order_they_were_entered():
    model = model_of()
    expected = [stock(model, prompt, NEW) for prompt in PROMPTS]
    first, second = engine_for(model), engine_for(model)
    with unchanged(model):
        first.__enter__()
        second.__enter__()
        assert tokens_of(first) == tokens_of(second) == expected
        first.__exit__(None, None, None)
        assert tokens_of(second) == expected
        second.__exit__(None, None, None)
    assert [stock(model, prompt, NEW) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("engine_first", [True, False])
@pytest.mark.parametrize("leave_last_first", [True, False])
def test_decode_kernel_beside_an_engine(engine_first, leave_last_first):
    model = model_of("gemma2")
    expected = [stock(model, prompt, NEW) for prompt in PROMPTS]
    engine, kernel = engine_for(model), decode_kernel(model)
    order = [engine, kernel] if engine_first else [kernel, engine]
    with unchanged(model):
        for one in order:
            one.__enter__()
        if engine_first:
            with pytest.raises(TrimtabError, match="attention is 'trimtab_decode', no longer"):
                tokens_of(engine)
            assert [stock(model, prompt, NEW) for prompt in PROMPTS] == expected
        else:
            assert tokens_of(engine) == expected
            with pytest.raises(TrimtabError, match=r"call engine\.generate"):
                stock(model, PROMPTS[0], NEW)
        for one in reversed(order) if leave_last_first else order:
            one.__exit__(None, None, None)
    assert [stock(model, prompt, NEW) for prompt in PROMPTS] == expected


def test_attention_set_meanwhile_is_noticed_and_the_models_own_comes_back():
    model = model_of()
    with unchanged(model), engine_for(model) as engine:

        def interfere(*_: object) -> None:
            model.set_attn_implementation("eager")

        with pytest.raises(TrimtabError, match="attention is 'eager', no longer the engine's"):
            engine.generate(PROMPTS, max_new_tokens=NEW, on_token=interfere)
        with pytest.raises(TrimtabError, match="attention is 'eager'"):
            engine.logits(PROMPTS[0], PROMPTS[1])


def test_modules_are_not_looked_through_at_every_step(monkeypatch):
    looked = 0
    modules = nn.Module.modules

    def counted(self: nn.Module, *rest: Any) -> Any:
        nonlocal looked
        looked += 1
        return modules(self, *rest)

    monkeypatch.setattr(nn.Module, "modules", counted)
    counts = []
    with engine_for(tiny().model) as engine:
        for new_tokens in (1, 4, 8):
            looked = 0
            engine.generate(PROMPTS, max_new_tokens=new_tokens)
            counts.append(looked)
    assert counts[1] == counts[2] > 0


def test_models_that_share_a_config_get_their_attention_back():
    first = model_of()
    second = type(first)(first.config).eval()
    with unchanged(first), ExitStack() as later, engine_for(first) as engine:
        later.enter_context(engine_for(second))
        tokens_of(engine)


@pytest.mark.parametrize("variant", ["llama", "gemma2", "gpt2"])
def test_layers_with_a_config_of_their_own_run_the_engines_attention(variant):
    model = copy.deepcopy(model_of(variant))
    other = copy.deepcopy(model_of(variant))
    layers, others = (
        next(part for part in one.modules() if isinstance(part, nn.ModuleList))
        for one in (model, other)
    )
    layers[1] = others[1]
    expected = [stock(model, prompt, NEW) for prompt in PROMPTS]
    with unchanged(model), unchanged(other):
        with engine_for(model) as engine:
            assert tokens_of(engine) == expected
            engines = other.config._attn_implementation
            other.set_attn_implementation("eager")
            with pytest.raises(TrimtabError, match="attention is 'eager'"):
                tokens_of(engine)
            other.config._attn_implementation = engines
        with decode_kernel(model):
            assert [stock(model, prompt, NEW) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("order", permutations(range(3)))
def test_a_vocabulary_leaves_a_model_that_shares_the_config_alone(words, order, tmp_path):
    first = tiny().model
    config, second = first.config, type(first)(first.config).eval()
    own = fingerprint(second)
    with unchanged(first), unchanged(second):
        entered = [engine_for(first), trimtab.apply(first, TOKENIZER, [words]), engine_for(first)]
        for one in entered:
            one.__enter__()
        assert first.config.vocab_size == first.lm_head.out_features > config.vocab_size
        assert fingerprint(second) == own
        second.save_pretrained(tmp_path / "saved")
        assert fingerprint(trimtab.load_model(tmp_path / "saved")) == own
        first.config.use_cache = False
        for index in order:
            entered[index].__exit__(None, None, None)
    assert all(one.config is config for one in first.modules() if hasattr(one, "config"))
    assert not config.use_cache


@pytest.mark.parametrize("inner", [engine_for, decode_kernel])
def test_a_vocabulary_may_be_left_before_what_was_entered_in_it(words, inner):
    model = tiny().model
    config, expected = model.config, stock(model, PROMPTS[0], NEW)
    with unchanged(model):
        vocabulary, other = trimtab.apply(model, TOKENIZER, [words]), inner(model)
        vocabulary.__enter__()
        other.__enter__()
        vocabulary.__exit__(None, None, None)
        other.__exit__(None, None, None)
    assert all(one.config is config for one in model.modules() if hasattr(one, "config"))
    assert stock(model, PROMPTS[0], NEW) == expected


def test_an_engine_does_not_run_a_model_that_was_changed_after_it_was_entered(larosa):
    model = tiny().model
    optimized = trimtab.apply(model, TOKENIZER, [larosa])
    with unchanged(model), engine_for(model) as engine:
        expected = tokens_of(engine)
        with optimized, pytest.raises(TrimtabError, match="methods were applied to the model"):
            tokens_of(engine)
        assert tokens_of(engine) == expected
        alone = larosa.method.apply(model, TOKENIZER, larosa)
        with alone, pytest.raises(TrimtabError, match="methods were applied"):
            engine.logits(PROMPTS[0], PROMPTS[1])
        model.train()
        with pytest.raises(MisfitError, match="training mode"):
            tokens_of(engine)
        model.eval()
    with unchanged(model):
        optimized.__enter__()
        inner = optimized.engine(slots=2, max_len=128)
        inner.__enter__()
        optimized.__exit__(None, None, None)
        with pytest.raises(TrimtabError, match="or undone, after the engine was entered"):
            tokens_of(inner)
        inner.__exit__(None, None, None)


def test_methods_applied_within_a_call_end_it(larosa):
    """With one slot, the second prompt would be read by the changed modules."""
    model = tiny().model
    with unchanged(model), engine_for(model, slots=1) as engine, ExitStack() as undo:
        expected = tokens_of(engine)

        def interfere(*_: object) -> None:
            undo.enter_context(trimtab.apply(model, TOKENIZER, [larosa]))

        with pytest.raises(TrimtabError, match="methods were applied to the model"):
            engine.generate(PROMPTS, max_new_tokens=NEW, on_token=interfere)
        undo.close()
        assert tokens_of(engine) == expected


@pytest.mark.parametrize("inner_first", [True, False])
def test_methods_on_methods_may_be_left_in_any_order(words, larosa, inner_first):
    model = tiny().model.train().requires_grad_(True)
    method = trimtab.LaRoSA(tokens=512, probe_tokens=256, window=64)
    with unchanged(model):
        outer = trimtab.apply(model, TOKENIZER, [words]).__enter__()
        sparse = trimtab.calibrate(model, outer.tokenizer, method, TEXTS)
        inner = trimtab.apply(model, outer.tokenizer, [sparse]).__enter__()
        expected = tokens_of(inner, ["word1 word2"])
        for call in (lambda: tokens_of(outer, ["word1"]), outer.suspended().__enter__):
            with pytest.raises(TrimtabError, match="put on the model after adaptivocab"):
                call()
        order = [inner, outer] if inner_first else [outer, inner]
        order[0].__exit__(None, None, None)
        if not inner_first:
            assert tokens_of(inner, ["word1 word2"]) == expected
        order[1].__exit__(None, None, None)


def from_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Return what the calls return when they begin at once, each in a thread of its own."""
    start = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [one.result() for one in [threads.submit(begin, call) for call in calls]]


@pytest.mark.parametrize("engines", [1, 2])
def test_threads_get_the_tokens_that_each_gets_alone(engines):
    model, prompts = model_of(), prompts_of(*range(2, 14))
    expected = [stock(model, prompt, 16) for prompt in prompts]
    with ExitStack() as running:
        made = [running.enter_context(engine_for(model)) for _ in range(engines)]

        def call(index: int) -> Callable[[], Any]:
            def generate() -> list[list[int]]:
                engine = made[index % engines]
                found = engine.generate(prompts[index::4], max_new_tokens=16)
                assert engine.logits(prompts[index], prompts[0]).shape[0] == len(prompts[0])
                return [one.tokens for one in found]

            return generate

        found = from_threads([call(index) for index in range(4)])
    assert found == [expected[index::4] for index in range(4)]


@pytest.mark.parametrize("with_cache", [True, False])
def test_threads_of_an_optimized_model_get_the_tokens_that_each_gets_alone(larosa, with_cache):
    stack = [larosa, trimtab.VAttention()] if with_cache else [larosa]
    drawing = trimtab.Sampling(temperature=1.0, seed=3)
    with trimtab.apply(tiny().model, TOKENIZER, stack) as optimized:

        def call(prompt: list[int]) -> list[int]:
            (made,) = optimized.generate([prompt], max_new_tokens=12, sampling=drawing)
            return made.tokens

        alone = [call(prompt) for prompt in PROMPTS]
        together = from_threads([lambda prompt=prompt: call(prompt) for prompt in PROMPTS])
    assert together == alone


def test_draws_for_one_model_do_not_disturb_those_for_another():
    drawing, models = trimtab.Sampling(temperature=1.0, seed=3), [tiny().model, tiny().model]

    def call(model: PreTrainedModel) -> list[int]:
        with trimtab.apply(model, TOKENIZER, []) as optimized:
            (made,) = optimized.generate([PROMPTS[0]], max_new_tokens=24, sampling=drawing)
        return made.tokens

    alone = call(models[0])
    assert from_threads([lambda model=model: call(model) for model in models]) == [alone, alone]


def test_what_calibrates_measures_and_generates_waits_for_each_other(larosa):
    model, method = tiny().model, larosa.method
    before = model.generation_config
    found = from_threads([lambda: trimtab.calibrate(model, TOKENIZER, method, TEXTS)] * 2)
    assert [(one.parameters, one.statistics) for one in found] == [
        (larosa.parameters, larosa.statistics)
    ] * 2
    config = trimtab.MeasureConfig(
        quality=trimtab.QualityConfig(
            windows=2, window_bytes=256, context_bytes=32, out_of_domain_windows=0
        ),
        generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
        speed=trimtab.SpeedConfig(repeats=3, warmup=0, seconds=0),
        serving=trimtab.ServingConfig(requests=[]),
    )

    def measured(optimized: trimtab.Optimized) -> list[Any]:
        result = trimtab.measure(optimized, TEXTS, config)
        return [result["quality"], result["sparsity"]["achieved"]]

    with trimtab.apply(model, TOKENIZER, [larosa]) as optimized:
        alone, tokens = measured(optimized), tokens_of(optimized)
        calls = [lambda: measured(optimized)] * 2 + [lambda: tokens_of(optimized)] * 2
        assert from_threads(calls) == [alone, alone, tokens, tokens]
    assert model.generation_config is before


@pytest.mark.parametrize("stack", [[], [trimtab.VAttention()]])
def test_a_part_in_training_mode_is_refused_on_every_route(stack):
    model = tiny("tiny-gpt2").model
    with trimtab.apply(model, TOKENIZER, stack) as optimized:
        model.transformer.h[0].mlp.train()
        for call in (tokens_of, lambda one: trimtab.measure(one, TEXTS)):
            with pytest.raises(MisfitError, match=r"transformer\.h\.0\.mlp is in training mode"):
                call(optimized)


def test_an_engine_called_from_its_own_call_refuses_instead_of_waiting_for_itself():
    model = model_of()
    with engine_for(model) as engine, engine_for(model) as other:
        expected = tokens_of(other)
        inside: list[Any] = []

        def reenter(*_: object) -> None:
            for call in (
                lambda: engine.generate(PROMPTS, max_new_tokens=1),
                lambda: engine.logits([1], [2]),
                lambda: engine.__exit__(None, None, None),
            ):
                with pytest.raises(TrimtabError, match="in the middle of a call"):
                    call()
            inside.append(tokens_of(other))

        found = engine.generate(PROMPTS, max_new_tokens=NEW, on_token=reenter)
        assert [one.tokens for one in found] == expected
        assert inside == [expected] * (NEW * len(PROMPTS))
        assert tokens_of(engine) == expected


def test_two_threads_cannot_apply_one_method_to_one_model(larosa):
    model, applied = tiny().model, threading.Barrier(2)

    def apply() -> str:
        try:
            with trimtab.apply(model, TOKENIZER, [larosa]):
                applied.wait()
                return "applied"
        except TrimtabError as error:
            applied.wait()
            return str(error)

    with unchanged(model):
        found = sorted(from_threads([apply, apply]))
    assert found[0] == "applied"
    assert found[1] != "applied"


@torch.no_grad()
def scale(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight.data.mul_(0.5)


@torch.no_grad()
def replace_embedding(model: Any) -> None:
    embedding = model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.flip(0), requires_grad=False)


@pytest.mark.parametrize("edit", [scale, replace_embedding])
@pytest.mark.parametrize("method", ["larosa", "words"])
def test_an_edit_of_what_methods_made_is_not_lost_in_silence(request, method, edit):
    model = tiny().model
    with trimtab.apply(model, TOKENIZER, [request.getfixturevalue(method)]) as optimized:
        tokens_of(optimized)
        with optimized.suspended():
            pass
        edit(model)
        expected = tokens_of(optimized)
        with pytest.raises(TrimtabError, match="the model was edited after .* was put on it"):
            trimtab.measure(optimized, TEXTS, SMALL)
        assert tokens_of(optimized) == expected


def test_an_edit_under_methods_that_leave_the_weights_alone_stays():
    model = tiny().model
    with trimtab.apply(model, TOKENIZER, [trimtab.VAttention()]) as optimized:
        scale(model)
        expected = tokens_of(optimized)
        with optimized.suspended():
            pass
        assert tokens_of(optimized) == expected


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_what_is_copied_while_an_engine_is_open_says_so(duplicate):
    model, ids = model_of(), torch.tensor([PROMPTS[0]])
    with trimtab.apply(model, TOKENIZER, []) as optimized, engine_for(model) as engine:
        made = duplicate(model)
        for one in (engine, optimized):
            with pytest.raises(TrimtabError, match="is neither copied nor pickled: it holds a mod"):
                duplicate(one)
    with pytest.raises(TrimtabError, match="or held it when this copy was made"):
        made(ids)
    assert torch.equal(duplicate(model)(ids).logits, model(ids).logits)
