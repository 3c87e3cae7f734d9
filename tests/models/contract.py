"""What every supported architecture must fulfil; a new one inherits it.

A subclass names a shipped tiny shape. The weights are drawn so that no default hides an
error: norm weights differ from one, biases from zero. Every architecture runs with its head
tied to the embeddings and untied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.conftest import random_inputs, tiny
from trimtab.models.adapter import (
    adapter_for,
    centers,
    head_shape,
    input_major,
    input_width,
    norm_bias,
    norm_epsilon,
    norm_weight,
)
from trimtab.models.layerwise import LayerwiseForward
from trimtab.models.loading import LoadedModel
from trimtab.models.sources import DType

# Relative to the largest logit. Everything is exact but for rounding in the model's own dtype.
TOLERANCE = {DType.float64: 1e-6, DType.float32: 1e-4, DType.bfloat16: 1e-1}


def draw(name: str, dtype: DType, tied: bool) -> LoadedModel:
    """Return a tiny model whose norms and biases are as random as its weights."""
    return copy.deepcopy(_drawn(name, dtype, tied))


@cache
def _drawn(name: str, dtype: DType, tied: bool) -> LoadedModel:
    loaded = tiny(name, dtype)
    config = copy.deepcopy(loaded.model.config)
    config.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.model.dtype)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.copy_(parameter + 0.3 * noise if parameter.ndim == 1 else 0.2 * noise)
    return replace(loaded, model=model)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    bound = TOLERANCE[DType(str(expected.dtype).removeprefix("torch."))]
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference < bound, f"{difference:.2e}"


def set_input_major(linear: nn.Module, weight: Tensor) -> None:
    """Give a linear layer a new weight, from a tensor of shape [inputs, outputs]."""
    stored = weight if isinstance(linear, Conv1D) else weight.T
    linear.weight = nn.Parameter(stored.contiguous(), requires_grad=False)


def multiply_outputs(linear: nn.Module, matrix: Tensor) -> None:
    """Multiply the last outputs of a linear layer by `matrix`, of shape [last, last]."""
    last = len(matrix)
    weight = input_major(linear).clone()
    weight[:, -last:] = weight[:, -last:] @ matrix
    set_input_major(linear, weight)
    if linear.bias is not None:
        linear.bias[-last:] = linear.bias[-last:] @ matrix


@contextmanager
def writing(layer: nn.Module, outputs: dict[str, Tensor]) -> Iterator[None]:
    """Let linear layers of a decoder layer return what `outputs` holds under their names."""
    with ExitStack() as hooks:
        for name, output in outputs.items():
            handle = layer.get_submodule(name).register_forward_hook(
                lambda module, inputs, found, output=output: output.expand_as(found)
            )
            hooks.callback(handle.remove)
        yield


def stepwise(model: PreTrainedModel, ids: Tensor, prompt: int) -> Tensor:
    """Return the logits of a cached decode, all after the prompt token by token."""
    step = model(ids[:, :prompt], use_cache=True)
    found = [step.logits]
    for token in ids[:, prompt:].T:
        step = model(token[:, None], past_key_values=step.past_key_values)
        found.append(step.logits)
    return torch.cat(found, 1)


class AdapterContract:
    """What the adapter says of the model; `shape` is the name of a tiny shape in shapes.yaml."""

    shape: ClassVar[str]

    @pytest.fixture(params=[True, False], ids=["tied", "untied"])
    def exact(self, request: pytest.FixtureRequest) -> LoadedModel:
        torch.manual_seed(0)
        return draw(self.shape, DType.float64, tied=request.param)

    def test_the_names_lead_to_modules_that_fit(self, exact):
        adapter, config = adapter_for(exact.model), exact.model.config
        layers = adapter.decoder_layers(exact.model)
        assert len(layers) == config.num_hidden_layers
        embeddings, head = exact.model.get_input_embeddings(), exact.model.get_output_embeddings()
        assert (head.weight is embeddings.weight) == config.tie_word_embeddings
        decoder = adapter.decoder(exact.model)
        assert layers[0] in list(decoder.modules())
        calls = []
        handle = decoder.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        stepwise(exact.model, random_inputs(1, 8), 6)
        handle.remove()
        assert len(calls) == 3
        assert all("past_key_values" in kwargs for _, kwargs in calls)
        tokens = [(args or (kwargs["input_ids"],))[0] for args, kwargs in calls]
        assert [part.shape[1] for part in tokens] == [6, 1, 1]
        for site in adapter.sites:
            widths = {input_width(reader) for reader in adapter.readers(layers[0], site)}
            assert len(widths) == 1
            if site.norm is not None:
                assert widths == set(layers[0].get_submodule(site.norm).weight.shape)

    def test_every_block_weight_reads_a_site(self, exact):
        adapter = adapter_for(exact.model)
        for layer in adapter.decoder_layers(exact.model):
            matrices = {p.data_ptr() for p in layer.parameters() if p.ndim == 2}
            readers = {
                reader.weight.data_ptr()
                for site in adapter.sites
                for reader in adapter.readers(layer, site)
            }
            assert matrices == readers

    def test_readers_of_a_site_read_the_same_and_it_is_what_its_norm_returns(self, exact):
        adapter = adapter_for(exact.model)
        layer = adapter.decoder_layers(exact.model)[0]
        for site in adapter.sites:
            seen: list[Tensor] = []
            handles = [
                reader.register_forward_pre_hook(
                    lambda m, inputs, seen=seen: seen.append(inputs[0])
                )
                for reader in adapter.readers(layer, site)
            ]
            if site.norm is not None:
                norm = layer.get_submodule(site.norm)
                handles.append(
                    norm.register_forward_hook(lambda m, i, found, seen=seen: seen.append(found))
                )
            exact.model(random_inputs(1, 8))
            for handle in handles:
                handle.remove()
            assert len(seen) == len(handles)
            assert all(torch.equal(seen[0], x) for x in seen)

    def test_input_major_is_what_the_layer_multiplies_by(self, exact):
        adapter = adapter_for(exact.model)
        layer = adapter.decoder_layers(exact.model)[0]
        for site in adapter.sites:
            for reader in adapter.readers(layer, site):
                x = torch.randn(3, input_width(reader), dtype=exact.model.dtype)
                bias = 0 if reader.bias is None else reader.bias
                torch.testing.assert_close(reader(x), x @ input_major(reader) + bias)
                set_input_major(reader, 2 * input_major(reader))
                torch.testing.assert_close(reader(x), x @ input_major(reader) + bias)

    def test_layer_by_layer_is_the_whole_models_forward(self, exact):
        adapter, windows = adapter_for(exact.model), random_inputs(3, 20)
        whole = exact.model(windows, output_hidden_states=True, use_cache=False).hidden_states
        forward = LayerwiseForward(exact.model, adapter, windows)
        assert forward.tokens == windows.numel()
        for index in range(len(forward.layers)):
            assert_equal(forward.hidden, whole[index])
            forward.hidden = forward.outputs(index)
        final = exact.model.get_submodule(adapter.final_norm)(forward.hidden)
        assert_equal(final, whole[-1])

    def test_norms_are_what_their_parts_say(self, exact):
        adapter = adapter_for(exact.model)
        layer = adapter.decoder_layers(exact.model)[0]
        norms = [layer.get_submodule(site.norm) for site in adapter.sites if site.norm]
        assert len(norms) == 2
        for norm in [*norms, exact.model.get_submodule(adapter.final_norm)]:
            # So small that epsilon matters, and off centre so that the mean does.
            x = 1e-3 * (1 + torch.randn(5, exact.model.config.hidden_size, dtype=torch.float64))
            bias = norm_bias(norm)
            deviation = x - x.mean(-1, keepdim=True) if centers(norm) else x
            scale = (deviation.square().mean(-1, keepdim=True) + norm_epsilon(norm)).sqrt()
            expected = deviation / scale * norm_weight(norm) + (0 if bias is None else bias)
            assert_equal(norm(x), expected)

    def test_heads_divide_the_attentions_output_and_what_it_reads(self, exact):
        adapter, shape = adapter_for(exact.model), head_shape(exact.model.config)
        layer = adapter.decoder_layers(exact.model)[0]
        (reader,) = adapter.readers(layer, adapter.sites.attention_output)
        assert input_width(reader) == shape.heads * shape.head_dim
        projections = adapter.readers(layer, adapter.sites.attention_input)
        outputs = sum(input_major(reader).shape[1] for reader in projections)
        assert outputs == (shape.heads + 2 * shape.kv_heads) * shape.head_dim

    def test_a_rotation_of_the_values_is_undone_after_the_attention(self, exact):
        adapter, shape = adapter_for(exact.model), head_shape(exact.model.config)
        ids = random_inputs(2, 20)
        expected = exact.model(ids).logits
        for layer in adapter.decoder_layers(exact.model):
            drawn = torch.randn(shape.kv_heads, shape.head_dim, shape.head_dim).double()
            rotations = torch.linalg.qr(drawn).Q
            multiply_outputs(layer.get_submodule(adapter.values), torch.block_diag(*rotations))
            assert not torch.allclose(exact.model(ids).logits, expected)
            (reader,) = adapter.readers(layer, adapter.sites.attention_output)
            repeated = rotations.repeat_interleave(shape.heads // shape.kv_heads, 0)
            set_input_major(reader, torch.block_diag(*repeated).T @ input_major(reader))
        assert_equal(exact.model(ids).logits, expected)

    def test_a_scale_of_the_gates_other_factor_is_undone_after_the_product(self, exact):
        adapter = adapter_for(exact.model)
        ids = random_inputs(2, 20)
        expected = exact.model(ids).logits
        _, _, mlp_input, mlp_activation = adapter.sites
        for layer in adapter.decoder_layers(exact.model):
            (reader,) = adapter.readers(layer, mlp_activation)
            width = input_width(reader)
            made = sum(input_major(linear).shape[1] for linear in adapter.readers(layer, mlp_input))
            assert made == (width if adapter.up is None else 2 * width)
            if adapter.up is not None:
                scale = torch.randn(width, dtype=torch.float64)
                scale += 0.1 * scale.sign()
                multiply_outputs(layer.get_submodule(adapter.up), scale.diag())
                assert not torch.allclose(exact.model(ids).logits, expected)
                set_input_major(reader, input_major(reader) / scale[:, None])
        assert_equal(exact.model(ids).logits, expected)

    def test_writers_alone_write_to_the_residual_stream(self, exact):
        adapter = adapter_for(exact.model)
        forward = LayerwiseForward(exact.model, adapter, random_inputs(1, 8))
        width = exact.model.config.hidden_size
        nothing = dict.fromkeys(adapter.writers, torch.zeros(width).double())
        for index, layer in enumerate(forward.layers):
            for name in adapter.writers:
                assert input_major(layer.get_submodule(name)).shape[1] == width
            with writing(layer, nothing):
                torch.testing.assert_close(forward.outputs(index), forward.hidden)

    def test_what_is_written_is_added_as_it_is_unless_it_passes_a_norm(self, exact):
        adapter = adapter_for(exact.model)
        forward = LayerwiseForward(exact.model, adapter, random_inputs(1, 8))
        width = exact.model.config.hidden_size
        written = torch.randn(width, dtype=torch.float64)
        for name in adapter.writers:
            outputs = dict.fromkeys(adapter.writers, torch.zeros(width).double())
            with writing(forward.layers[0], {**outputs, name: written}):
                found = forward.outputs(0) - forward.hidden
            assert torch.allclose(found, written.expand_as(found)) != bool(adapter.post_norms)
