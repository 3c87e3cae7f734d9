"""What an applied model holds in memory and reads per token, counted by hand."""

from __future__ import annotations

import gc
import resource
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

from tests.conftest import random_inputs, tiny
from tests.models.contract import assert_equal, draw
from trimtab.corpus import Corpus, Document, Split
from trimtab.errors import MisfitError, TrimtabError
from trimtab.larosa import (
    Allocation,
    Basis,
    Count,
    LaRoSA,
    Precision,
    RotationScope,
    Selection,
    Transforms,
)
from trimtab.larosa.account import AppliedLaRoSA
from trimtab.larosa.apply import SparseModel
from trimtab.larosa.plan import SitePlan
from trimtab.larosa.selection import Positions, Recorder, Selector
from trimtab.larosa.settings import Prefill
from trimtab.models.sources import DType
from trimtab.windows import token_windows

SMALL = {"tokens": 512, "window": 64, "probe_tokens": 128}
LAYERS, WIDTH = 3, 64
# Llama of width 64, MLP 160, two of four heads for keys and values: weights per layer.
BY_SITE = {"h1": 64 * (64 + 32 + 32), "h2": 64 * 64, "h3": 2 * 64 * 160, "h4": 160 * 64}
WEIGHTS = LAYERS * sum(BY_SITE.values())
INT8 = WIDTH * WIDTH + 4 * WIDTH
SQUARE = WIDTH * WIDTH

DESIGNS = [
    ({"transforms": Transforms.all}, 2 * LAYERS * INT8, 0),
    ({"transforms": Transforms.all, "precision": Precision.model}, 2 * LAYERS * 4 * SQUARE, 0),
    ({"transforms": Transforms.none}, 0, 0),
    ({"transforms": Transforms.none, "residual": RotationScope.model}, 0, 2 * 4 * SQUARE),
    (
        {"transforms": Transforms.none, "residual": RotationScope.group, "group": 2},
        0,
        3 * 4 * SQUARE,
    ),
    ({"transforms": Transforms.none, "residual": RotationScope.layer}, 0, 4 * 4 * SQUARE),
    (
        {"transforms": Transforms.all, "residual": RotationScope.layer},
        2 * LAYERS * INT8,
        4 * 4 * SQUARE,
    ),
]


def half(**more) -> LaRoSA:
    """Return a method that keeps exactly half of every site, of every token."""
    given = {
        "sparsity": 0.5, "count": Count.nominal, "allocation": Allocation.uniform,
        "selection": Selection.topk, "dense_prefix": 0, **SMALL, **more,
    }  # fmt: skip
    return LaRoSA(**given)


def measured(loaded, method, artifact, ids: torch.Tensor) -> dict:
    with method.apply(loaded.model, loaded.tokenizer, artifact) as applied:
        with applied.recording():
            loaded.model(ids)
        return applied.measured()["sparsity"]


@pytest.mark.parametrize(("design", "transforms", "changes"), DESIGNS)
def test_bytes_read_are_those_counted_by_hand(corpus, tiny_llama, design, transforms, changes):
    method = half(**design)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    section = measured(tiny_llama, method, artifact, random_inputs(2, 10))
    assert section["requested"] == 0.5
    assert section["sites"] == dict.fromkeys(("h1", "h2", "h3", "h4"), 0.5)
    assert section["achieved"] == pytest.approx(0.5)
    extra = (transforms + changes) / (4 * WEIGHTS)
    assert section["bytes_fraction"] == pytest.approx(0.5 + extra)


@pytest.mark.parametrize(("design", "transforms", "changes"), DESIGNS)
def test_bytes_asked_for_count_transforms_and_basis_changes(
    corpus, tiny_llama, design, transforms, changes
):
    """Of the four sites h1 has 64 entries, as h2 and h3, and h4 160."""
    method = half(**design, count=Count.bytes)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    expected = 0.5 + (transforms + changes) / (4 * WEIGHTS)
    for row in artifact.parameters["plan"]["sites"].values():
        for part in row:
            assert part["sparsity"] == pytest.approx(expected)


def test_a_deep_model_needs_no_more_files_than_a_shallow_one(corpus, tiny_llama):
    """It has three layers of nine modules, and each of them leaves memory."""
    method = half(transforms=Transforms.all)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (n for n in range(soft) if not Path(f"/proc/self/fd/{n}").exists())
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, 8, None)), hard))
    try:
        with method.apply(tiny_llama.model, tiny_llama.tokenizer, artifact):
            tiny_llama.model(random_inputs(1, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
@pytest.mark.parametrize("count", list(Count))
@pytest.mark.parametrize(
    ("residual", "dense_prefix"), [(RotationScope.none, 0), (RotationScope.group, 8)]
)
def test_thresholds_reach_the_bytes_asked_for_on_the_text_they_were_found_on(
    corpus, sparsity, count, residual, dense_prefix
):
    loaded = tiny()
    method = LaRoSA(
        sparsity=sparsity, count=count, residual=residual, group=2, dense_prefix=dense_prefix,
        **SMALL,
    )  # fmt: skip
    sparse = 1 - dense_prefix / 64
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    assert artifact.statistics["thresholds"] == "validation"
    documents = corpus.documents(Split.validation)
    section = measured(loaded, method, artifact, token_windows(documents, loaded.tokenizer, 2, 64))
    if count is Count.bytes:
        extra = section["bytes_fraction"] - (1 - section["achieved"])
        asked = section["achieved"] / sparse - extra
        assert asked == pytest.approx(sparsity, abs=0.01)
    else:
        assert section["achieved"] == pytest.approx(sparsity * sparse, abs=0.01)
    plan = artifact.parameters["plan"]["sites"]
    for row in section["layers"]:
        expected = plan[row["site"]][row["layer"]]
        assert row["achieved"] == pytest.approx(expected["sparsity"] * sparse, abs=0.01)
        assert row["basis"] == expected["basis"]
    # Other text of the same kind, that nothing was found on.
    documents = corpus.documents(Split.test)
    windows = token_windows(documents, loaded.tokenizer, 8, 64)
    other = measured(loaded, method, artifact, windows)
    assert other["achieved"] == pytest.approx(section["achieved"], abs=0.02)


def test_without_validation_text_thresholds_are_found_on_the_calibration_text(corpus, tiny_llama):
    class Short(Corpus):
        def documents(self, split: Split) -> list[Document]:
            if split is Split.validation:
                return [Document("short", "a few words")]
            return super().documents(split)

    short = Short("words", corpus.documents(Split.calibration), calibration=0.5, validation=0.2)
    method = LaRoSA(sparsity=0.4, count=Count.nominal, **SMALL)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, short)
    assert artifact.statistics["thresholds"] == "calibration"
    assert artifact.statistics["threshold_tokens"] == 128
    windows = token_windows(short.documents(Split.calibration), tiny_llama.tokenizer, 8, 64)
    section = measured(tiny_llama, method, artifact, windows[:2])
    assert section["achieved"] == pytest.approx(0.4, abs=0.01)


def test_what_a_step_reads_follows_from_what_was_kept_and_whether_the_kernel_skips():
    recorder, positions = Recorder(), Positions(0, Prefill.sparse)
    parts = [
        Selector(
            site, SitePlan("plain", 0.5, 1.0), Selection.topk, 1.0, positions, recorder,
            recorded=torch.tensor(seen),
        )
        for site, seen in (("h1", (10, 40)), ("h2", (30, 40)), ("h1", (20, 40)), ("h2", (40, 40)))
    ]  # fmt: skip
    weights = [1000, 400, 2000, 800]
    kept = 250 + 300 + 1000 + 800
    for skips in (True, False):
        sparse = SparseModel(weights, 100, 60, "a kernel", "another", skips)
        applied = AppliedLaRoSA(sparse, parts, recorder, 0.4)
        assert applied.kernel == "a kernel"
        assert applied.kept_bytes() == kept
        # Transforms are parameters of the model; basis changes are not.
        assert applied.extra_step_bytes() == 60 - (4200 - kept if skips else 0)
        section = applied.measured()["sparsity"]
        assert section["requested"] == 0.4
        assert section["prompt_kernel"] == "another"
        assert section["achieved"] == pytest.approx(1 - kept / 4200)
        assert section["bytes_fraction"] == pytest.approx((kept + 160) / 4200)
        read = kept if skips else 4200
        assert section["bytes_read_fraction"] == pytest.approx((read + 160) / 4200)
        assert section["sites"] == {"h1": pytest.approx(0.625), "h2": pytest.approx(0.125)}


def test_nothing_is_counted_unless_asked(tiny_llama, corpus):
    method = LaRoSA(**SMALL)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    with method.apply(tiny_llama.model, tiny_llama.tokenizer, artifact) as applied:
        tiny_llama.model(random_inputs(1, 16))
        with pytest.raises(ZeroDivisionError):
            applied.measured()


def live_bytes() -> int:
    """Return the bytes of all tensors of this process."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
@pytest.mark.parametrize(("design", "transforms", "changes"), [DESIGNS[n] for n in (0, 4)])
def test_no_second_copy_of_a_weight_stays_in_memory(corpus, dtype, design, transforms, changes):
    loaded = tiny(dtype=dtype)
    method = half(**design)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    size = loaded.model.dtype.itemsize
    if design.get("precision") is Precision.model:
        transforms = transforms // 4 * size
    before = live_bytes()
    parameters = sum(p.nbytes for p in loaded.model.parameters())
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        held = sum(p.nbytes for p in loaded.model.parameters())
        assert held == parameters + transforms
        # Of the layer folded last its rotation may still be there, in float64. What the artifact
        # holds in the dtype it runs in is not copied either.
        rotation = 8 * SQUARE if changes else 0
        assert live_bytes() - before <= transforms + changes // 4 * size + rotation
    assert live_bytes() == before


@pytest.mark.parametrize(
    "settings",
    [
        {"transforms": Transforms.all},
        {"transforms": Transforms.all, "precision": Precision.model},
        {"fold_norms": True, "transforms": Transforms.none},
        {"residual": RotationScope.layer, "transforms": Transforms.none},
    ],
)
def test_norms_and_weights_that_are_zero_in_places_are_folded_exactly(corpus, settings):
    loaded = draw("tiny-llama", DType.float64, tied=True)
    for layer in loaded.model.model.layers:
        layer.input_layernorm.weight[3] = 0
        layer.post_attention_layernorm.weight[5] = 0
        layer.mlp.up_proj.weight[7] = 0
        layer.mlp.down_proj.weight[:, 9] = 0
        layer.self_attn.v_proj.weight[2] = 0
    method = LaRoSA(sparsity=0.0, count=Count.nominal, **settings, **SMALL)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    ids = random_inputs(2, 12)
    expected = loaded.model(ids).logits
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        assert_equal(loaded.model(ids).logits, expected)


def test_plain_magnitude_leaves_the_weights_as_they_are(tiny_llama, corpus):
    method = LaRoSA(basis=Basis.none, sparsity=0.0, **SMALL)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    names = {"layers.{}.h1.norm_weight", "layers.{}.h3.norm_weight"}
    assert set(artifact.tensors) == {name.format(n) for name in names for n in range(LAYERS)}
    layer = tiny_llama.model.model.layers[0]
    expected = layer.mlp.down_proj.weight.T.clone()
    with method.apply(tiny_llama.model, tiny_llama.tokenizer, artifact):
        assert torch.equal(layer.mlp.down_proj.weight, expected)


@pytest.mark.parametrize("settings", [{"basis": Basis.none}, {"transforms": Transforms.all}])
def test_gradients_through_a_sparse_model_are_refused(tiny_llama, corpus, settings):
    """A selection that drops nothing cuts the graph too: off by 99.7 % where outputs agree."""
    model = tiny_llama.model
    method = half(**{"transforms": Transforms.none, **settings})
    artifact = method.calibrate(model, tiny_llama.tokenizer, corpus)
    embedded = model.get_input_embeddings()(random_inputs(1, 4)).requires_grad_()
    with method.apply(model, tiny_llama.tokenizer, artifact):
        with pytest.raises(NotImplementedError, match="has no derivative: run the model under"):
            model(inputs_embeds=embedded)
        with torch.no_grad():
            model(inputs_embeds=embedded)
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None


class Adapter(nn.Linear):
    """A linear layer that adds something, as adapters and quantized layers do."""


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


MORE = {
    "adapter": (
        lambda on: setattr(on.mlp, "up_proj", Adapter(64, 160)),
        r"mlp\.up_proj is a Adapter",
    ),
    "quantized": (
        lambda on: setattr(
            on.mlp.up_proj, "weight", nn.Parameter(torch.ones(160, 64).char(), False)
        ),
        r"mlp\.up_proj has a weight of Tensor in torch\.int8",
    ),
    "wrapped norm": (
        lambda on: setattr(on, "input_layernorm", Wrapper(on.input_layernorm)),
        "input_layernorm is a Wrapper that wraps other modules",
    ),
    "forward hook": (
        lambda on: on.input_layernorm.register_forward_hook(print),
        "input_layernorm has hooks",
    ),
    "backward hook": (
        lambda on: on.self_attn.q_proj.register_full_backward_hook(print),
        r"self_attn\.q_proj has hooks",
    ),
    "forward of its own": (
        lambda on: setattr(on.mlp.down_proj, "forward", print),
        r"mlp\.down_proj has hooks or a forward of its own",
    ),
    "parametrized": (
        lambda on: nn.utils.parametrizations.weight_norm(on.mlp.up_proj),
        r"mlp\.up_proj is a ParametrizedLinear",
    ),
}
HIDDEN = {
    "an MLP": (
        lambda layers: setattr(layers[1], "mlp", Around(layers[1].mlp)),
        r"\.mlp is a Around, which has no gate_proj",
    ),
    "a layer": (
        lambda layers: layers.__setitem__(1, Around(layers[1])),
        r" is a Around, which has no self_attn",
    ),
}
SURGERY = {
    **{name: change for name, (change, _) in HIDDEN.items()},
    "a layer less": lambda layers: layers.__delitem__(1),
    "checkpointing": checkpoint_wrapper.apply_activation_checkpointing,
}


SHARED = {
    "a layer": lambda layers: layers.__setitem__(1, layers[0]),
    "a norm": lambda layers: setattr(layers[1], "input_layernorm", layers[0].input_layernorm),
    "a weight": lambda layers: setattr(
        layers[1].self_attn.o_proj, "weight", layers[0].self_attn.o_proj.weight
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_layers_that_share_weights_are_refused(tiny_llama, name):
    SHARED[name](tiny_llama.model.model.layers)
    with pytest.raises(MisfitError, match=r"layers\.1\..* and model\.layers\.0\..* are one weight"):
        LaRoSA().check(tiny_llama.model)


@pytest.mark.parametrize("within", ["entering", "leaving", "both"])
def test_weights_are_ordinary_ones_after_inference_mode(corpus, tiny_llama, within):
    model, method = tiny_llama.model, LaRoSA(**SMALL)
    artifact = method.calibrate(model, tiny_llama.tokenizer, corpus)
    change = method.apply(model, tiny_llama.tokenizer, artifact)
    with torch.inference_mode(within != "leaving"):
        change.__enter__()
    with torch.inference_mode(within != "entering"):
        change.__exit__(None, None, None)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model.requires_grad_(True)
    model(random_inputs(1, 4)).logits.sum().backward()


def test_weights_are_ordinary_ones_after_an_export_in_inference_mode(corpus, tiny_llama, tmp_path):
    model = tiny_llama.model
    artifact = LaRoSA(**SMALL).calibrate(model, tiny_llama.tokenizer, corpus)
    with torch.inference_mode():
        artifact.export(model, tmp_path / "exported", tiny_llama.tokenizer)
    assert not any(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_wrapper_hides_is_refused(tiny_llama, name):
    change, message = HIDDEN[name]
    change(tiny_llama.model.model.layers)
    with pytest.raises(MisfitError, match=rf"^model\.layers\.1{message}: take off what wraps it"):
        LaRoSA().check(tiny_llama.model)


@pytest.mark.parametrize("name", SURGERY)
def test_all_of_a_model_comes_back_however_it_was_taken_apart_meanwhile(corpus, tiny_llama, name):
    model, method, ids = tiny_llama.model, LaRoSA(**SMALL), random_inputs(1, 16)
    artifact = method.calibrate(model, tiny_llama.tokenizer, corpus)
    other = tiny().model
    SURGERY[name](other.model.layers)
    with method.apply(model, tiny_llama.tokenizer, artifact):
        SURGERY[name](model.model.layers)
    assert torch.equal(model(ids).logits, other(ids).logits)


@pytest.mark.parametrize(
    ("place", "when", "settings", "right"),
    [
        ("", "forward_pre", {}, True),
        ("", "forward", {}, True),
        ("mlp", "forward", {}, False),
        ("self_attn", "forward", {}, False),
        ("self_attn", "forward_pre", {}, False),
        ("mlp", "forward_pre", {}, False),
        ("", "forward_pre", {"residual": "layer"}, False),
        ("", "forward", {"residual": "layer"}, False),
        ("mlp", "forward", {"residual": "layer"}, False),
    ],
)
def test_a_hook_that_would_see_what_is_transformed_is_refused(
    corpus, tiny_llama, place, when, settings, right
):
    def steer(module, inputs, outputs=None):
        given = inputs if outputs is None else outputs
        return given + 0.1 if isinstance(given, torch.Tensor) else (given[0] + 0.1, *given[1:])

    model, ids = tiny_llama.model, random_inputs(1, 16)
    module = model.model.layers[1].get_submodule(place)
    getattr(module, f"register_{when}_hook")(steer)
    method = LaRoSA(**SMALL, sparsity=0, count="nominal", transforms="all", **settings)
    if not right:
        name = f"model.layers.1.{place}".rstrip(".")
        with pytest.raises(
            MisfitError, match=f"^{name} runs .*steer.* what LaRoSA has transformed"
        ):
            method.check(model)
        return
    artifact, expected = method.calibrate(model, tiny_llama.tokenizer, corpus), model(ids).logits
    with method.apply(model, tiny_llama.tokenizer, artifact):
        assert_equal(model(ids).logits, expected)


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "class"])
def test_what_is_on_the_final_norm_sees_the_basis_of_the_model(corpus, tiny_llama, kind):
    model, ids = tiny_llama.model, random_inputs(1, 16)

    def shifted(module, inputs, outputs=0.0):
        moved = outputs + 0.3 * inputs[0].roll(1, -1)
        return (moved,) if kind == "forward_pre" else moved

    class Shifting(type(model.model.norm)):
        def forward(self, x):
            return super().forward(x + 0.3 * x.roll(1, -1))

    if kind == "class":
        model.model.norm.__class__ = Shifting
    else:
        getattr(model.model.norm, f"register_{kind}_hook")(shifted)
    method = LaRoSA(**SMALL, sparsity=0, count="nominal", residual="model")
    artifact, expected = method.calibrate(model, tiny_llama.tokenizer, corpus), model(ids).logits
    with method.apply(model, tiny_llama.tokenizer, artifact):
        assert_equal(model(ids).logits, expected)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("asked", ["call", "config"])
def test_hidden_states_are_those_of_the_model_or_refused(corpus, name, asked):
    loaded, ids = tiny(name), random_inputs(1, 16)
    model, tokenizer = loaded.model, loaded.tokenizer
    keywords = {"output_hidden_states": True} if asked == "call" else {}
    made = {}
    for residual in ("none", "layer", "model"):
        method = LaRoSA(**SMALL, sparsity=0, count="nominal", residual=residual)
        made[residual] = method, method.calibrate(model, tokenizer, corpus)
    expected = model(ids, output_hidden_states=True).hidden_states
    for residual, (method, artifact) in made.items():
        with method.apply(model, tokenizer, artifact):
            model(ids)
            model.config.output_hidden_states = asked == "config"
            if residual == "none":
                for found, own in zip(model(ids, **keywords).hidden_states, expected, strict=True):
                    assert_equal(found, own)
            else:
                with pytest.raises(ValueError, match="^output_hidden_states: .*residual=none"):
                    model(ids, **keywords)
        model.config.output_hidden_states = False
    assert torch.equal(model(ids, output_hidden_states=True).hidden_states[1], expected[1])


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("flex_attention", "^attn_implementation=flex_attention has no gradients on a CPU"),
        ("paged|eager", r"attn_implementation=paged\|eager, .*: make it eager$"),
    ],
)
def test_an_attention_that_cannot_calibrate_is_named(corpus, tiny_llama, attention, expected):
    model, method = tiny_llama.model, LaRoSA(**SMALL)
    model.set_attn_implementation(attention)
    with pytest.raises(TrimtabError, match=expected):
        method.calibrate(model, tiny_llama.tokenizer, corpus)


@pytest.mark.parametrize("kind", ["forward_pre", "forward"])
def test_hooks_on_all_modules_are_refused(tiny_llama, kind):
    def louder(module, *given):
        return None

    handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(louder)
    try:
        with pytest.raises(MisfitError, match=r"louder .* is a hook on every module .* remove it"):
            LaRoSA().check(tiny_llama.model)
    finally:
        handle.remove()
    LaRoSA().check(tiny_llama.model)


def test_a_class_of_the_callers_that_would_see_what_is_transformed_is_refused(tiny_llama):
    mlp = tiny_llama.model.model.layers[1].mlp

    class Louder(type(mlp)):
        def forward(self, x):
            return super().forward(2 * x)

    mlp.__class__ = Louder
    with pytest.raises(MisfitError, match=r"^model\.layers\.1\.mlp runs .*Louder\.forward"):
        LaRoSA().check(tiny_llama.model)


@pytest.mark.parametrize("compiled", ["layers in place", "layers", "an MLP's forward", "all"])
def test_what_is_compiled_is_calibrated_as_it_is(corpus, tiny_llama, compiled):
    model, method = tiny_llama.model, LaRoSA(**SMALL)
    expected = method.calibrate(model, tiny_llama.tokenizer, corpus)
    layers = model.model.layers
    for index, layer in enumerate(layers):
        if compiled == "layers in place":
            layer.compile(backend="eager")
        elif compiled == "layers":
            layers[index] = torch.compile(layer, backend="eager")
        elif compiled == "an MLP's forward":
            layer.mlp.forward = torch.compile(layer.mlp.forward, backend="eager")
    if compiled == "all":
        model.model.compile(backend="eager")
    found = method.calibrate(model, tiny_llama.tokenizer, corpus)
    assert found.parameters["plan"] == expected.parameters["plan"]


@pytest.mark.parametrize("name", MORE)
def test_a_module_that_does_more_than_its_weight_says_is_refused(tiny_llama, name):
    change, message = MORE[name]
    LaRoSA().check(tiny_llama.model)
    change(tiny_llama.model.model.layers[1])
    with pytest.raises(MisfitError, match=rf"^model\.layers\.1\.{message}"):
        LaRoSA().check(tiny_llama.model)
