"""The passes layer by layer find what one pass over the whole model finds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.conftest import random_inputs, tiny
from tests.models.contract import draw
from trimtab.errors import TrimtabError
from trimtab.larosa.checkpoint import Checkpoint
from trimtab.larosa.passes import Passes
from trimtab.models.adapter import adapter_for, head_shape, norm_bias, norm_weight
from trimtab.models.sources import DType

WINDOWS, LENGTH, PROBES, PREFIX = 5, 12, 3, 2


@pytest.fixture(params=["tiny-llama", "tiny-gpt2", "tiny-gemma2", "tiny-opt"])
def model(request):
    return draw(request.param, DType.float64, tied=True).model


@contextmanager
def read(model) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Collect what the first reader of every site of every layer reads."""
    adapter, seen = adapter_for(model), {}
    handles = []
    for index, layer in enumerate(adapter.decoder_layers(model)):
        for site in adapter.sites:

            def hook(module, inputs, key=(index, site.name)) -> None:
                seen[key] = inputs[0]

            handles.append(adapter.readers(layer, site)[0].register_forward_pre_hook(hook))
    yield seen
    for handle in handles:
        handle.remove()


def counted(x: Tensor) -> Tensor:
    """Return the rows of texts' tokens, but for those that drop nothing."""
    return x.reshape(-1, LENGTH, x.shape[-1])[:, PREFIX:].flatten(0, 1)


def mean_products(x: Tensor) -> Tensor:
    rows = counted(x)
    return torch.einsum("ti,tj->ij", rows, rows) / len(rows)


def mean_head_products(model, x: Tensor) -> Tensor:
    shape = head_shape(model.config)
    shared = shape.heads // shape.kv_heads
    rows = counted(x).reshape(-1, shape.kv_heads, shared, shape.head_dim)
    return torch.einsum("tgsi,tgsj->gij", rows, rows) / len(rows)


def test_moments_are_those_of_the_whole_models_forward(model, tmp_path):
    windows = random_inputs(WINDOWS, LENGTH)
    passes = Passes(model, windows, PROBES, Checkpoint(tmp_path), PREFIX)
    passes.moments()
    adapter = adapter_for(model)
    mixed = adapter.sites.attention_output.name
    with read(model) as seen:
        states = model(windows, output_hidden_states=True, use_cache=False).hidden_states
    for index, layer in enumerate(adapter.decoder_layers(model)):
        found = passes.checkpoint.load("moments", index)
        assert set(found) == {"h1", "h2", "h3"}
        for site in adapter.sites:
            if site.norm is not None:
                norm = layer.get_submodule(site.norm)
                bias = norm_bias(norm)
                made = seen[index, site.name] - (0 if bias is None else bias)
                expected = mean_products(made / norm_weight(norm))
                torch.testing.assert_close(found[site.name], expected, rtol=1e-6, atol=1e-6)
        expected = mean_head_products(model, seen[index, mixed])
        torch.testing.assert_close(found[mixed], expected, rtol=1e-6, atol=1e-9)
        entering = passes.entering(index)
        torch.testing.assert_close(entering, states[index][:PROBES], rtol=1e-6, atol=1e-9)


def test_fisher_second_moments_are_those_of_one_backward_through_the_whole_model(model, tmp_path):
    windows = random_inputs(WINDOWS, LENGTH)
    passes = Passes(model, windows, PROBES, Checkpoint(tmp_path), PREFIX)
    passes.moments()
    passes.fisher()
    gradients: dict[tuple[int, str], list[Tensor]] = {}
    for number, window in enumerate(windows[:PROBES]):
        generator = torch.Generator().manual_seed(number)
        with torch.enable_grad(), read(model) as seen:
            model.requires_grad_(True)
            logits = model(window[None], use_cache=False).logits[0]
            drawn = torch.multinomial(logits.detach().softmax(-1).float(), 1, generator=generator)
            chosen = logits.log_softmax(-1).gather(-1, drawn)
            parts = torch.autograd.grad(chosen.sum(), list(seen.values()))
        for key, part in zip(seen, parts, strict=True):
            gradients.setdefault(key, []).append(part)
    model.requires_grad_(False)
    adapter = adapter_for(model)
    for index, layer in enumerate(adapter.decoder_layers(model)):
        found = passes.checkpoint.load("fisher", index)
        assert set(found) == {"h1", "h2", "h3", "h4"}
        for site in adapter.sites:
            gradient = torch.cat(gradients[index, site.name])
            if site.norm is not None:
                expected = mean_products(gradient * norm_weight(layer.get_submodule(site.norm)))
            elif site is adapter.sites.attention_output:
                expected = mean_head_products(model, gradient)
            else:
                expected = counted(gradient).square().mean(0)
            scale = expected.abs().max()
            torch.testing.assert_close(found[site.name] / scale, expected / scale, **CLOSE)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize("size", [1, 2**-10, 2**-14])
def test_gradients_too_small_for_float16_are_those_of_float32(tmp_path, name, size):
    """The weight of the final norm sets how small they are."""
    narrow = tiny(name, DType.float16).model.requires_grad_(False)
    narrow.get_submodule(adapter_for(narrow).final_norm).weight.fill_(size)
    wide = copy.deepcopy(narrow).float()
    found = []
    for part in (narrow, wide):
        folder = tmp_path / str(part.dtype)
        passes = Passes(part, random_inputs(WINDOWS, LENGTH), PROBES, Checkpoint(folder), PREFIX)
        passes.moments()
        passes.fisher()
        found.append([passes.checkpoint.load("fisher", index) for index in range(3)])
    for own, expected in zip(*found, strict=True):
        for site, moment in expected.items():
            assert (own[site] - moment).norm() < 0.004 * moment.norm()


def test_activations_and_gradients_that_are_not_finite_are_named_with_their_place(tmp_path):
    loaded = draw("tiny-llama", DType.float64, tied=True)
    windows = random_inputs(WINDOWS, LENGTH)
    layers = loaded.model.model.layers
    weight = layers[1].self_attn.v_proj.weight.data.clone()
    layers[1].self_attn.v_proj.weight.data[0, 0] = torch.inf
    place = r"activations at the attention output \(h2\) of layer 1 are not finite"
    with pytest.raises(TrimtabError, match=place):
        passes = Passes(loaded.model, windows, PROBES, Checkpoint(tmp_path / "activations"), PREFIX)
        passes.moments()
    assert not (tmp_path / "activations" / "moments" / "001.safetensors").exists()
    layers[1].self_attn.v_proj.weight.data = weight
    passes = Passes(loaded.model, windows, PROBES, Checkpoint(tmp_path / "gradients"), PREFIX)
    passes.moments()
    handle = layers[0].mlp.down_proj.register_full_backward_hook(
        lambda module, inputs, outputs: (inputs[0] * torch.inf,)
    )
    place = r"gradients at the attention input \(h1\) of layer 0 are not finite"
    with pytest.raises(TrimtabError, match=place):
        passes.fisher()
    handle.remove()
    assert not (tmp_path / "gradients" / "fisher" / "000.safetensors").exists()


# The loss and its gradient are taken in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
