"""What folding makes of one layer's parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.models.contract import draw
from trimtab.larosa.fold import fold
from trimtab.larosa.precision import stored_transform
from trimtab.larosa.settings import Precision
from trimtab.models.adapter import adapter_for, head_shape, input_major, norm_weight
from trimtab.models.sources import DType

WIDTH = 64


def parts(name: str, dtype: DType = DType.float64):
    model = draw(name, dtype, tied=True).model
    adapter = adapter_for(model)
    return adapter, head_shape(model.config), adapter.decoder_layers(model)[1]


def norm_weights(adapter, layer) -> dict[str, torch.Tensor]:
    """Return what a plan without any transform saves."""
    return {
        f"{site.name}.norm_weight": norm_weight(layer.get_submodule(site.norm)).float()
        for site in adapter.sites
        if site.norm
    }


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-phi3", "tiny-gpt2", "tiny-gemma2"])
@pytest.mark.parametrize("rotates", [False, True])
def test_the_layer_itself_is_not_changed(name, rotates):
    adapter, heads, layer = parts(name)
    before = copy.deepcopy(layer.state_dict())
    drawn = torch.randn(heads.kv_heads, heads.head_dim, heads.head_dim)
    tensors = {**norm_weights(adapter, layer), "h2.transform": drawn}
    bases = {site.name: "residual" if rotates else "plain" for site in adapter.sites}
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    folded = fold(adapter, heads, layer, bases, tensors, rotation if rotates else None)
    after = layer.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert set(folded.linears) == {name for site in adapter.sites for name in site.readers}
    assert set(folded.norms) == {site.norm for site in adapter.sites if site.norm}
    for name, (weight, _) in folded.linears.items():
        original = input_major(layer.get_submodule(name))
        assert weight.shape == original.shape
        assert weight.dtype == original.dtype
        assert weight.is_contiguous()  # rows, one for each input, one after the other


def test_a_plan_that_leaves_the_norms_their_weights_leaves_every_weight_as_it_is():
    adapter, heads, layer = parts("tiny-llama")
    bases = dict.fromkeys(("h1", "h2", "h3", "h4"), "plain")
    tensors = {key: value.double() for key, value in norm_weights(adapter, layer).items()}
    folded = fold(adapter, heads, layer, bases, tensors, None)
    for name, (weight, bias) in folded.linears.items():
        expected = input_major(layer.get_submodule(name))
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-9)
        assert bias is None
    assert folded.transforms == {}


@pytest.mark.parametrize(
    ("name", "rotates", "kind"),
    [
        ("tiny-llama", False, nn.RMSNorm),
        ("tiny-llama", True, nn.RMSNorm),
        ("tiny-gpt2", False, nn.LayerNorm),
        ("tiny-gpt2", True, nn.RMSNorm),  # the residual stream goes without its mean
        ("tiny-gemma3", False, nn.RMSNorm),
    ],
)
def test_norms_keep_their_kind_unless_the_stream_is_rotated(name, rotates, kind):
    adapter, heads, layer = parts(name)
    bases = {site.name: "residual" if rotates else "plain" for site in adapter.sites}
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    tensors = norm_weights(adapter, layer)
    folded = fold(adapter, heads, layer, bases, tensors, rotation if rotates else None)
    for norm in folded.norms.values():
        assert type(norm) is kind
        assert getattr(norm, "bias", None) is None


def test_what_a_layer_writes_is_centred_and_rotated_where_norms_would_centre_it():
    adapter, heads, layer = parts("tiny-gpt2")
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    bases = dict.fromkeys(("h1", "h2", "h3", "h4"), "residual")
    folded = fold(adapter, heads, layer, bases, norm_weights(adapter, layer), rotation)
    for name in adapter.writers:
        writer, (weight, bias) = layer.get_submodule(name), folded.linears[name]
        x = torch.randn(5, len(weight), dtype=torch.float64)
        written = writer(x)
        expected = (written - written.mean(-1, keepdim=True)) @ rotation
        torch.testing.assert_close(x @ weight + bias, expected)


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_a_transform_is_kept_as_it_will_run(dtype):
    adapter, heads, layer = parts("tiny-llama", dtype)
    bases = {"h1": "transform", "h2": "plain", "h3": "transform", "h4": "plain"}
    tensors = {}
    for site, precision in (("h1", Precision.int8), ("h3", Precision.model)):
        drawn = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
        stored = stored_transform(drawn, torch.ones(WIDTH).double(), precision)
        tensors |= {f"{site}.{what}": tensor for what, tensor in stored.items()}
    folded = fold(adapter, heads, layer, bases, tensors, None)
    (coarse, scale), (fine, none) = folded.transforms["h1"], folded.transforms["h3"]
    assert (coarse.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert (str(fine.dtype), none) == (f"torch.{dtype}", None)
