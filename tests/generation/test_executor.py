"""Which models an executor takes, that it follows every change of one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrizations import weight_norm
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

import trimtab
from tests.generation.models import TOKENIZER, engine_for, model_of, prompts_of
from tests.models.plan_contract import LENGTH, empty_cache, plan_of
from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.sources import DType
from trimtab_kernels.decode_step import cpu

NEW = 8
PROMPTS = prompts_of(7, 4)


def generated(engine: Any) -> list[list[int]]:
    return [one.tokens for one in engine.generate(PROMPTS, max_new_tokens=NEW)]


def by_forward(model: PreTrainedModel) -> list[list[int]]:
    """Return greedy continuations without any cache."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        for _ in range(NEW):
            token = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], 1)
        found.append(ids[0, len(prompt) :].tolist())
    return found


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def strided(weight: Tensor) -> nn.Parameter:
    wide = torch.zeros(*weight.shape[:-1], 2 * weight.shape[-1])
    wide[..., ::2] = weight
    return nn.Parameter(wide[..., ::2], requires_grad=False)


def layer(model: Any, index: int = 0) -> Any:
    return model.model.layers[index]


def swap(model: Any) -> None:
    model.model.layers[0], model.model.layers[1] = layer(model, 1), layer(model, 0)


def put(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a norm's weight, in place": lambda m: layer(m).input_layernorm.weight.mul_(2.0),
    "the final norm, in place": lambda m: m.model.norm.weight.add_(torch.arange(64) / 30),
    "all weights, in place": lambda m: m.load_state_dict(
        {name: -one.flip(-1) for name, one in m.state_dict().items()}
    ),
    "frequencies, in place": lambda m: m.model.rotary_emb.inv_freq.mul_(0.2),
    "frequencies, untracked": lambda m: m.model.rotary_emb.inv_freq.data.mul_(0.2),
    "a hook for all modules": lambda m: register_module_forward_hook(
        lambda part, _, output: -output if isinstance(part, nn.Linear) else None
    ),
    "an MLP wrapped": lambda m: put(layer(m), "mlp", Twice(layer(m).mlp)),
    "a projection of two": lambda m: put(
        layer(m).self_attn,
        "q_proj",
        nn.Sequential(layer(m).self_attn.q_proj, nn.Linear(64, 64, bias=False)),
    ),
    "a forward of one object": lambda m: put(
        layer(m).mlp, "forward", lambda x: layer(m).mlp.down_proj(layer(m).mlp.up_proj(x))
    ),
    "another activation": lambda m: put(layer(m).mlp, "act_fn", nn.ReLU()),
    "another epsilon": lambda m: put(layer(m).input_layernorm, "variance_epsilon", 10),
    "another scale of scores": lambda m: put(layer(m).self_attn, "scaling", 2.0),
    "layers in another order": swap,
    "no norm": lambda m: put(layer(m), "input_layernorm", nn.Identity()),
    "a norm without a weight": lambda m: put(
        layer(m), "input_layernorm", nn.RMSNorm(64, 1e-5, elementwise_affine=False)
    ),
    "a strided weight": lambda m: put(
        layer(m).mlp.down_proj, "weight", strided(-layer(m).mlp.down_proj.weight)
    ),
    "a transposed weight": lambda m: put(
        layer(m).self_attn.o_proj.weight, "data", layer(m).self_attn.o_proj.weight.data.T
    ),
}


@pytest.fixture
def no_hooks_left() -> Iterator[None]:
    yield
    module._global_forward_hooks.clear()


@pytest.mark.usefixtures("no_hooks_left")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_what_generates(name, when):
    model = model_of()
    torch.manual_seed(0)
    if when == "before":
        CHANGES[name](model)
        model.eval()
        with engine_for(model) as engine:
            assert generated(engine) == by_forward_of(model, engine)
        return
    with engine_for(model) as engine:
        before = generated(engine)
        CHANGES[name](model)
        model.eval()
        found = generated(engine)
        assert found == by_forward_of(model, engine)
        assert found != before


def by_forward_of(model: PreTrainedModel, engine: Any) -> list[list[int]]:
    """Return what a copy of the model computes: its own attention is the engine's meanwhile."""
    step, model.config._attn_implementation = model.config._attn_implementation, "eager"
    try:
        return by_forward(model)
    finally:
        model.config._attn_implementation = step


def normed(model: Any) -> None:
    untied = model.model.embed_tokens.weight.clone()
    model.lm_head.weight = nn.Parameter(untied)
    weight_norm(model.model.embed_tokens)


OWN_WAYS: dict[str, Callable[[Any], object]] = {
    "makes its weights of others": normed,
    "shortens its rows": lambda m: put(m.model.embed_tokens, "max_norm", 0.5),
}


@pytest.mark.parametrize("name", OWN_WAYS)
def test_modules_that_do_more_than_their_weights_say_run_themselves(name):
    model = model_of()
    OWN_WAYS[name](model)
    model.eval()
    with engine_for(model) as engine:
        assert engine.decode_step.startswith("decode step by the model's modules")
        assert name in engine.decode_step


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_head_with_rows_of_any_numbers_has_an_executor(value):
    model = model_of()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.lm_head.weight.data[: 7 if value else None] = value
    with engine_for(model) as engine:
        assert engine.decode_step.startswith("C++")
        if value == 0:
            assert generated(engine) == by_forward_of(model, engine)
        else:
            with pytest.raises(TrimtabError, match="not finite: lm_head.weight holds NaN or inf"):
                generated(engine)


@pytest.mark.parametrize("number", [1.0, torch.nan])
@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_patched_code_of_a_library_is_seen(monkeypatch, dtype, number):
    model = model_of("llama", dtype)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.lm_head.weight.data[5, 3] = number
    original = modeling_llama.LlamaMLP.forward

    @functools.wraps(original)
    def patched(own: nn.Module, x: Tensor) -> Tensor:
        return original(own, -x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", patched)
    with engine_for(model) as engine:
        assert engine.decode_step.endswith("runs code of somebody else")
    monkeypatch.undo()
    turn = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: turn(q, k, sin, cos)
    )
    with engine_for(model) as engine:
        assert "its decode plan differs from it by" in engine.decode_step


def test_positions_without_a_row_are_not_read():
    model = model_of("gpt2")
    model.transformer.wpe.weight = nn.Parameter(model.transformer.wpe.weight[:40])
    with engine_for(model) as engine:
        assert "embeddings of positions are 40; expected 128" in engine.decode_step


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_a_cache_of_another_dtype_is_refused(dtype):
    model = model_of("llama", dtype)
    other = torch.bfloat16 if dtype is DType.float32 else torch.float32
    keys, values = ([one.to(other) for one in part] for part in empty_cache(model, 1))
    with pytest.raises(ValueError, match="the cache is torch"):
        cpu.CpuExecutor(plan_of(model), keys, values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_was_moved_to_another_dtype_is_refused(dtype):
    model = model_of()
    with engine_for(model) as engine:
        model.to(dtype)
        with pytest.raises(
            MisfitError, match="was made for torch.float32 on cpu: enter the engine"
        ):
            generated(engine)
        model.to(torch.float32)
        assert generated(engine)


def test_an_engine_runs_in_the_models_dtype_under_autocast():
    model = model_of()
    with engine_for(model) as engine:
        expected = generated(engine)
    model.register_forward_hook(lambda *_: None)  # once more by the modules
    with torch.autocast("cpu", torch.bfloat16), engine_for(model) as engine:
        assert generated(engine) == expected


def test_a_setting_that_is_a_list_is_followed():
    model = model_of("gemma3")
    with engine_for(model) as engine:
        before = generated(engine)
        model.config.layer_types.reverse()
        found = generated(engine)
    with engine_for(model) as engine:
        assert generated(engine) == found != before


def test_rotations_are_kept_once_for_all_layers_of_a_kind():
    for name, kinds in (("llama", 1), ("gemma3", 2)):
        plan = plan_of(model_of(name, DType.bfloat16))
        tables = {one.rotary.cos.data_ptr() for one in plan.layers if one.rotary}
        assert len(tables) == kinds
        assert all(one.rotary.cos.shape[0] == LENGTH for one in plan.layers if one.rotary)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_an_engine_runs_when_it_is_entered_is_not_recorded(device):
    method = trimtab.LaRoSA(tokens=512, probe_tokens=256, window=64)
    model = nn.Module.to(model_of(), device)
    texts = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
    artifact = trimtab.calibrate(model, TOKENIZER, method, texts)
    with trimtab.apply(model, TOKENIZER, [artifact]) as optimized:
        (part,) = optimized.applied.members
        with part.recording(), engine_for(model, page_group=None) as engine:
            engine.generate([[1, 2, 3]], max_new_tokens=2)
        seen = {int(one.recorded[1]) for one in part.selectors if one.site == "h1"}
    assert seen == {4 * 64}  # three tokens of the prompt and one of the two after it


def test_a_cache_of_few_tokens_has_an_executor():
    with engine_for(model_of(), max_len=3) as engine:
        assert engine.decode_step.startswith("C++")
        assert engine.generate([[5]], max_new_tokens=1)[0].tokens
