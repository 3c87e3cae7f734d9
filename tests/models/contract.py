"""What every supported architecture must fulfil; a new one inherits it.

A subclass names a shipped tiny shape. The weights are drawn so that nothing hides behind a
default: norm weights differ from one, biases from zero.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch

from tests.conftest import random_inputs, tiny
from toolkit.artifact import Artifact
from toolkit.config import DType
from toolkit.corpus import Corpus
from toolkit.larosa import Basis, LaRoSA
from toolkit.models import LoadedModel, adapter_for
from toolkit.models.adapter import input_major, input_width, set_input_major

# Relative to the largest logit. Everything is exact but for rounding in the model's own dtype.
TOLERANCE = {DType.float64: 1e-6, DType.float32: 1e-4, DType.bfloat16: 6e-2}


def draw(name: str, dtype: DType) -> LoadedModel:
    """Return a tiny model whose norms and biases are as random as its weights."""
    loaded = tiny(name, dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in loaded.model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if parameter.ndim == 1 and key.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return loaded


class AdapterContract:
    """The tests; `shape` is the name of a tiny shape in shapes.yaml."""

    shape: ClassVar[str]

    @pytest.fixture(params=list(TOLERANCE), ids=str)
    def loaded(self, request: pytest.FixtureRequest) -> LoadedModel:
        return draw(self.shape, request.param)

    @pytest.fixture
    def exact(self) -> LoadedModel:
        return draw(self.shape, DType.float64)

    @pytest.fixture(params=[Basis.pca, Basis.output_pca], ids=str)
    def dense(self, request: pytest.FixtureRequest, loaded: LoadedModel, corpus: Corpus):
        """Return LaRoSA at sparsity 0, and its artifact."""
        method = LaRoSA(sparsity=0.0, basis=request.param, tokens=1024, window=64)
        return method, method.calibrate(loaded.model, loaded.tokenizer, corpus)

    def assert_equal(self, found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
        bound = TOLERANCE[DType(str(dtype).removeprefix("torch."))]
        difference = (found - expected).abs().max() / expected.abs().max()
        assert difference < bound, f"{difference:.2e}"

    def test_the_names_lead_to_modules_that_fit(self, exact):
        adapter, config = adapter_for(exact.model), exact.model.config
        layers = adapter.decoder_layers(exact.model)
        assert len(layers) == config.num_hidden_layers
        assert exact.model.get_submodule(adapter.embeddings).weight is (
            exact.model.get_input_embeddings().weight
        )
        assert exact.model.get_submodule(adapter.head) is exact.model.get_output_embeddings()
        for site in adapter.sites:
            widths = {input_width(reader) for reader in adapter.readers(layers[0], site)}
            assert len(widths) == 1
            if site.norm is not None:
                assert widths == set(layers[0].get_submodule(site.norm).weight.shape)

    def test_every_block_weight_is_behind_a_site(self, exact):
        adapter = adapter_for(exact.model)
        for layer in adapter.decoder_layers(exact.model):
            matrices = {p.data_ptr() for p in layer.parameters() if p.ndim == 2}
            behind = {
                reader.weight.data_ptr()
                for site in adapter.sites
                for reader in adapter.readers(layer, site)
            }
            assert matrices == behind

    def test_readers_read_the_same_activations(self, exact):
        adapter = adapter_for(exact.model)
        layer = adapter.decoder_layers(exact.model)[0]
        for site in adapter.sites:
            seen: list[torch.Tensor] = []
            handles = [
                reader.register_forward_pre_hook(
                    lambda m, inputs, seen=seen: seen.append(inputs[0])
                )
                for reader in adapter.readers(layer, site)
            ]
            exact.model(random_inputs(exact.model, 1, 8))
            for handle in handles:
                handle.remove()
            assert len(seen) == len(site.readers)
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

    def test_full_forward_at_sparsity_0(self, loaded, dense):
        method, artifact = dense
        ids = random_inputs(loaded.model, 2, 24)
        expected = loaded.model(ids).logits
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            found = loaded.model(ids).logits
        self.assert_equal(found, expected, loaded.model.dtype)

    def test_cached_decode_at_sparsity_0(self, loaded, dense):
        method, artifact = dense
        ids = random_inputs(loaded.model, 1, 12)
        expected = loaded.model(ids).logits
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            step = loaded.model(ids[:, :5], use_cache=True)
            found = [step.logits]
            for token in ids[:, 5:].T:
                step = loaded.model(token[:, None], past_key_values=step.past_key_values)
                found.append(step.logits)
        self.assert_equal(torch.cat(found, 1), expected, loaded.model.dtype)

    def test_after_saving_and_loading_the_artifact(self, loaded, dense, tmp_path):
        method, artifact = dense
        artifact.save(tmp_path / "artifact")
        ids = random_inputs(loaded.model, 1, 12)

        def logits(source: Artifact) -> torch.Tensor:
            with method.apply(loaded.model, loaded.tokenizer, source):
                return loaded.model(ids).logits

        assert torch.equal(logits(Artifact.load(tmp_path / "artifact")), logits(artifact))

    def test_teacher_forcing_equals_decoding_step_by_step_when_sparse(self, corpus):
        loaded = draw(self.shape, DType.float64)
        method = LaRoSA(sparsity=0.5, tokens=512, window=64)
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
        ids = random_inputs(loaded.model, 1, 12)
        with method.apply(loaded.model, loaded.tokenizer, artifact):
            expected = loaded.model(ids).logits
            step = loaded.model(ids[:, :5], use_cache=True)
            found = [step.logits]
            for token in ids[:, 5:].T:
                step = loaded.model(token[:, None], past_key_values=step.past_key_values)
                found.append(step.logits)
        self.assert_equal(torch.cat(found, 1), expected, torch.float64)

    @pytest.mark.parametrize("failing", [False, True], ids=["normal", "exception"])
    def test_leaving_restores_every_bit_and_every_hook(self, loaded, corpus, failing):
        method = LaRoSA(sparsity=0.5, tokens=512, window=64)
        artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
        before = copy.deepcopy(loaded.model.state_dict())
        pointers = {name: p.data_ptr() for name, p in loaded.model.named_parameters()}
        ids = random_inputs(loaded.model, 1, 12)
        logits = loaded.model(ids).logits

        def use() -> None:
            with method.apply(loaded.model, loaded.tokenizer, artifact):
                assert not torch.equal(loaded.model(ids).logits, logits)
                if failing:
                    raise KeyError("within")

        if failing:
            with pytest.raises(KeyError, match="within"):
                use()
        else:
            use()
        after = loaded.model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert pointers == {name: p.data_ptr() for name, p in loaded.model.named_parameters()}
        assert torch.equal(loaded.model(ids).logits, logits)
        for module in loaded.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    def test_calibration_leaves_the_model_as_it_was(self, exact, corpus):
        before = copy.deepcopy(exact.model.state_dict())
        LaRoSA(tokens=512, window=64).calibrate(exact.model, exact.tokenizer, corpus)
        after = exact.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all("forward" not in module.__dict__ for module in exact.model.modules())
