"""Modules that a caller has changed in what neither a tensor nor the config says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import trimtab
from tests.conftest import SHAPES, tiny
from tests.generation.models import engine_for
from tests.models.edited import check_refused
from trimtab.adaptivocab import AdaptiVocab
from trimtab.errors import MisfitError
from trimtab.larosa import LaRoSA
from trimtab.models.adapter import adapter_for
from trimtab.models.edits import edits
from trimtab.models.fingerprint import fingerprint
from trimtab.vattention.attention import decode_kernel

IDS = torch.arange(3, 30)[None]
SMALL: dict[str, Any] = {"tokens": 512, "window": 64}
Change = Callable[[PreTrainedModel], object]


def negated(module: nn.Module, *args: Any) -> Any:
    """Be a hook that turns round what a module reads or returns."""
    return -args[-1] if isinstance(args[-1], torch.Tensor) else (-args[-1][0], *args[-1][1:])


def in_layer(model: PreTrainedModel, name: str, index: int = 1) -> tuple[str, Any]:
    """Return the full name of a part of a decoder layer, and the part."""
    full = f"{adapter_for(model).layers}.{index}.{name}".rstrip(".")
    return full, model.get_submodule(full)


def parts(model: PreTrainedModel) -> dict[str, Any]:
    """Return parts of a decoder layer that every architecture has."""
    adapter = adapter_for(model)
    norm = adapter.sites.attention_input.norm
    assert norm is not None
    found = {
        "attention": adapter.attention,
        "norm": norm,
        "activation": adapter.activation,
        "layer": "",
    }
    return {what: in_layer(model, name) for what, name in found.items()}


def set_in(part: str, **values: Any) -> Change:
    """Return what sets the first of these attributes that a part has, and says its name."""

    def change(model: PreTrainedModel) -> str:
        place, module = parts(model)[part]
        name = next(name for name in values if hasattr(module, name))
        setattr(module, name, values[name])
        return f"{place}.{name}"

    return change


def another_class(model: PreTrainedModel) -> str:
    place, _ = parts(model)["activation"]
    model.set_submodule(place, nn.Tanh())
    return place


def sharper(module: Any, *given: Any, scaling: float, softcap: object = None, **more: Any) -> Any:
    return sdpa_attention_forward(module, *given, scaling=3 * scaling, **more)


def attention(model: PreTrainedModel) -> str:
    with_attention(model.config)
    return "attn_implementation"


def attention_of_a_layer(model: PreTrainedModel) -> str:
    place, module = parts(model)["attention"]
    module.config = with_attention(copy.deepcopy(module.config))
    return f"{place}.attn_implementation"


def with_attention(config: Any) -> Any:
    AttentionInterface.register("sharper", sharper)
    AttentionMaskInterface.register("sharper", sdpa_mask)
    config._attn_implementation = "sharper"
    return config


def hook(kind: str, model: PreTrainedModel) -> str:
    place, layer = parts(model)["layer"]
    getattr(layer, kind)(negated)
    return f"{place}.hooks"


def forward(model: PreTrainedModel) -> str:
    place, layer = parts(model)["layer"]
    layer.forward = partial(lambda run, *args, **more: -run(*args, **more), layer.forward)
    return f"{place}.hooks"


ANY: dict[str, Change] = {
    "activation": another_class,
    "scaling": set_in("attention", scaling=2.0),
    "epsilon": set_in("norm", variance_epsilon=0.5, eps=0.5),
    "hook": partial(hook, "register_forward_hook"),
    "pre-hook": partial(hook, "register_forward_pre_hook"),
    "forward": forward,
    "attention": attention,
    "attention of a layer": attention_of_a_layer,
}


def named(name: str, value: Any) -> Change:
    """Return what sets an attribute by its full name."""

    def change(model: PreTrainedModel) -> str:
        place, _, own = name.rpartition(".")
        assert hasattr(model.get_submodule(place), own)
        setattr(model.get_submodule(place), own, value)
        return name

    return change


OWN: list[tuple[str, Change]] = [
    *((shape, named("model.rotary_emb.attention_scaling", 3.0))
      for shape in ("tiny-llama", "tiny-qwen3", "tiny-gemma2", "tiny-phi3")),
    ("tiny-gemma3", named("model.rotary_emb.sliding_attention_attention_scaling", 3.0)),
    ("tiny-gemma2", named("model.layers.0.self_attn.attn_logit_softcapping", 0.1)),
    ("tiny-gemma3", named("model.layers.0.self_attn.q_norm.eps", 0.5)),
    ("tiny-opt", named("model.decoder.layers.0.do_layer_norm_before", False)),
    ("tiny-opt", named("model.decoder.embed_positions.offset", 0)),
    ("tiny-llama", named("model.embed_tokens.max_norm", 0.01)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "change"),
    [*((shape, change) for shape in SHAPES for change in ANY.values()), *OWN],
)
@torch.no_grad()
def test_what_a_module_computes_by_makes_another_model(shape, change):
    model = tiny(shape).model
    before, expected = fingerprint(model), model(IDS).logits
    assert not edits(model)
    name = change(model)
    found = model(IDS).logits
    assert (found - expected).abs().max() > 1e-3
    assert [*edits(model)] == [name]
    assert fingerprint(model) != before
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model)


@pytest.mark.parametrize("name", ["sdpa", "mask", "eager"])
def test_a_function_in_the_place_of_transformers_own_makes_another_model(name, monkeypatch):
    model = tiny().model
    model.set_attn_implementation("sdpa" if name == "mask" else name)
    before = fingerprint(model)
    if name == "mask":
        given = {**AttentionMaskInterface._global_mapping, "sdpa": lambda **more: None}
        monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", given)
    else:
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, name, sharper)
    assert [*edits(model)] == ["attn_implementation"]
    assert fingerprint(model) != before


@pytest.mark.parametrize("change", [attention, attention_of_a_layer])
@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
def test_a_callers_attention_is_not_replaced(shape, change):
    model = tiny(shape).model
    engine = engine_for(model)
    name = change(model)
    before = model.config._attn_implementation
    told = f"^{name} selects tests.models.test_edits.sharper: Trimtab's attention would replace it"
    for call in (
        lambda: engine_for(model),
        engine.__enter__,
        decode_kernel(model).__enter__,
        lambda: trimtab.apply(model, tiny(shape).tokenizer, [trimtab.VAttention()]).__enter__(),
    ):
        with pytest.raises(MisfitError, match=told):
            call()
    assert model.config._attn_implementation == before
    assert not model._forward_pre_hooks


def test_settings_of_a_class_that_took_the_place_of_another_count():
    prints = set()
    for slope in (0.1, 0.2):
        model = tiny().model
        model.model.layers[0].mlp.act_fn = nn.LeakyReLU(slope)
        prints.add(fingerprint(model))
    assert len(prints) == 2


class Scaled(nn.Module):
    """An activation that scales what SiLU makes."""

    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(x) * torch.as_tensor(self.factor)


class Negated(nn.Identity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


class AtRandom(nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, 0.5, training=True)


def steering(strength: float) -> Change:
    """Return what adds to the output of a layer by a hook that encloses how much."""
    return lambda model: parts(model)["layer"][1].register_forward_hook(
        lambda module, read, made: made + strength * torch.arange(made.shape[-1])
    )


def bound(strength: torch.Tensor) -> Change:
    """Return what does so by a hook that has how much as its argument."""

    def add(much: torch.Tensor, module: nn.Module, read: Any, made: torch.Tensor) -> torch.Tensor:
        return made + much * torch.arange(made.shape[-1])

    return lambda model: parts(model)["layer"][1].register_forward_hook(partial(add, strength))


def activating(module: nn.Module) -> Change:
    return lambda model: model.set_submodule(parts(model)["activation"][0], module)


def calling(function: Any) -> Change:
    """Return what has a function in the place of the activation's module."""

    def change(model: PreTrainedModel) -> None:
        mlp = model.model.layers[1].mlp
        del mlp.act_fn
        mlp.act_fn = function

    return change


def standing_in(function: Any) -> Change:
    return lambda model: setattr(model.model.layers[1].mlp.act_fn, "forward", function)


def of_a_subclass(factor: float) -> Change:
    """Return what makes a model's class one of its name that scales its logits."""

    def change(model: PreTrainedModel) -> None:
        class Derived(type(model)):  # type: ignore[misc]
            def forward(self, *args: Any, **more: Any) -> Any:
                made = super().forward(*args, **more)
                made.logits = made.logits * factor
                return made

        Derived.__name__ = type(model).__name__
        model.__class__ = Derived

    return change


def untouched(model: PreTrainedModel) -> None:
    pass


PAIRS: dict[str, tuple[Change, Change]] = {
    "enclosed": (steering(0.1), steering(0.2)),
    "argument": (bound(torch.tensor(0.1)), bound(torch.tensor(0.2))),
    "tensor": (activating(Scaled(torch.tensor(0.5))), activating(Scaled(torch.tensor(1.5)))),
    "numpy": (activating(Scaled(np.float32(0.5))), activating(Scaled(np.float32(1.5)))),
    "array": (activating(Scaled(np.float32([0.5]))), activating(Scaled(np.float32([1.5])))),
    "identity": (activating(nn.Identity()), activating(Negated())),
    "functions": (calling(functional.relu), calling(functional.gelu)),
    "partials": (
        calling(partial(functional.leaky_relu, negative_slope=0.1)),
        calling(partial(functional.leaky_relu, negative_slope=0.9)),
    ),
    "lambdas": (standing_in(lambda x: x), standing_in(lambda x: 2 * x)),
    "forward": (standing_in(torch.tanh), untouched),
    "method": (standing_in(nn.ReLU().forward), untouched),
    "class": (of_a_subclass(2.0), untouched),
}


@pytest.mark.parametrize("changes", PAIRS.values(), ids=PAIRS)
@torch.no_grad()
def test_models_that_predict_differently_have_two_fingerprints(changes):
    models = [tiny().model, tiny().model]
    for change, model in zip(changes, models, strict=True):
        change(model)
    first, second = (model(IDS).logits for model in models)
    assert (first - second).abs().max() > 1e-3
    assert edits(models[0])
    assert fingerprint(models[0]) != fingerprint(models[1])
    assert fingerprint(copy.deepcopy(models[0])) == fingerprint(models[0])


@pytest.mark.parametrize("module", [Negated(), AtRandom()], ids=repr)
def test_what_is_derived_of_modules_without_effect_counts(module):
    model = tiny("tiny-gpt2").model
    before = fingerprint(model)
    model.transformer.h[0].mlp.dropout = module
    assert "transformer.h.0.mlp.dropout" in edits(model)
    assert fingerprint(model) != before


def test_a_hook_that_keeps_what_it_sees_makes_no_model_after_model():
    model, kept, calls = tiny().model, [], 0

    def keep(module: nn.Module, read: Any, made: Any) -> None:
        nonlocal calls
        calls += 1
        kept.append(made)

    model.model.layers[0].register_forward_hook(keep)
    before = fingerprint(model)
    model(IDS)
    assert calls == len(kept) == 1
    assert fingerprint(model) == before


def test_a_hook_of_all_modules_makes_another_model(tiny_llama):
    before = fingerprint(tiny_llama.model)
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert fingerprint(tiny_llama.model) != before
    finally:
        handle.remove()
    assert fingerprint(tiny_llama.model) == before


def without_dropout(model: PreTrainedModel) -> None:
    for layer in model.transformer.h:
        layer.attn.resid_dropout = nn.Identity()
        layer.mlp.dropout.p = 0.5


NOTHING: dict[str, Change] = {
    "training": lambda model: model.train(),
    "checkpointing": lambda model: model.gradient_checkpointing_enable(),
    "dropout": without_dropout,
    "accelerate": lambda model: dispatch_model(model, {"": "cpu"}, force_hooks=True),
    "compiled": lambda model: setattr(model, "forward", torch.compile(model.forward)),
    "padding": lambda model: setattr(model.config, "pad_token_id", 5),
    "name": lambda model: setattr(model.transformer.h[0], "name", "first"),
    "attention": lambda model: model.set_attn_implementation("eager"),
    "run": lambda model: model(IDS, output_hidden_states=True),
}


@pytest.mark.parametrize("change", NOTHING.values(), ids=NOTHING)
def test_what_changes_no_prediction_makes_no_other_model(change):
    model = tiny("tiny-gpt2").model
    before = fingerprint(model)
    change(model)
    assert fingerprint(model) == before
    assert not edits(model)


def test_rotations_that_follow_the_length_of_a_text_are_no_edit():
    drawn = tiny("tiny-gemma3").model
    config = copy.deepcopy(drawn.config)
    config.max_position_embeddings = 64
    config.rope_parameters["full_attention"] |= {"rope_type": "dynamic", "factor": 4.0}
    model = type(drawn)(config).eval()
    model(torch.zeros(1, 200, dtype=torch.int64))
    assert not edits(model)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_methods_make_of_a_model_is_no_edit(shape, corpus, tmp_path):
    loaded = tiny(shape)
    model, tokenizer = loaded.model, loaded.tokenizer
    rotated = {} if adapter_for(model).post_norms else {"residual": "model"}
    sparse = LaRoSA(**SMALL, probe_tokens=128, **rotated)
    words = AdaptiVocab(mode="full", size=8, max_bpb_increase=None, rows="mean")
    artifact = sparse.calibrate(model, tokenizer, corpus)
    with trimtab.apply(model, tokenizer, [artifact]), engine_for(model):
        assert not edits(model)
    artifact.export(model, tmp_path / "sparse", tokenizer)
    assert not edits(trimtab.load_model(tmp_path / "sparse"))
    artifact = words.calibrate(model, tokenizer, corpus)
    with trimtab.apply(model, tokenizer, [artifact]):
        assert not edits(model)
    model.resize_token_embeddings(len(tokenizer) + 3)
    model.save_pretrained(tmp_path / "saved")
    assert not edits(model)
    assert fingerprint(trimtab.load_model(tmp_path / "saved")) == fingerprint(model)


@pytest.mark.parametrize("change", ["activation", "hook", "epsilon", "attention"])
@pytest.mark.parametrize(
    "method",
    [
        LaRoSA(**SMALL, probe_tokens=128),
        AdaptiVocab(mode="full", size=8, max_bpb_increase=None, rows="mean"),
    ],
    ids=lambda one: one.name,
)
def test_an_edited_model_takes_no_older_artifact_and_is_not_exported(
    method, change, corpus, tiny_llama, tmp_path
):
    told = ": .*, and the model's config makes it "
    check_refused(method, tiny_llama, corpus, tmp_path / "out", ANY[change], told)


def test_a_config_edited_after_loading_is_not_exported(corpus, tiny_llama, tmp_path):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    model.config.rms_norm_eps = 0.5
    own = LaRoSA(**SMALL, probe_tokens=128).calibrate(model, tokenizer, corpus)
    with pytest.raises(MisfitError, match=r"variance_epsilon: 1e-06, .* config makes it 0\.5"):
        own.export(model, tmp_path / "out", tokenizer)


@pytest.mark.parametrize(("index", "found"), [(1, "1.self_attn.layer_idx: 2"), (2, "2: nothing")])
def test_a_model_with_fewer_layers_than_its_config_is_not_exported(
    index, found, corpus, tiny_llama, tmp_path
):
    model, tokenizer = tiny_llama.model, tiny_llama.tokenizer
    del model.model.layers[index]
    own = LaRoSA(**SMALL, probe_tokens=128).calibrate(model, tokenizer, corpus)
    with pytest.raises(MisfitError, match=rf"^model\.layers\.{found}, and the model's config "):
        own.export(model, tmp_path / "out", tokenizer)
    model.config.num_hidden_layers = 2
    if index == 1:
        model.model.layers[1].self_attn.layer_idx = 1
    own = LaRoSA(**SMALL, probe_tokens=128).calibrate(model, tokenizer, corpus)
    own.export(model, tmp_path / "out", tokenizer)
    assert len(trimtab.load_model(tmp_path / "out").model.layers) == 2
