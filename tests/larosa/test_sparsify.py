import pytest
import torch

from tests.conftest import random_inputs, tiny
from toolkit.corpus import Split, token_windows
from toolkit.larosa import Basis, LaRoSA, Selection
from toolkit.larosa.rotation import pca
from toolkit.larosa.sparsify import SiteSparsifier, observed, sparsified, topk
from toolkit.method import Applied
from toolkit.models import Site, adapter_for

SHAPES = ["tiny-llama", "tiny-gpt2"]


@pytest.mark.parametrize("name", SHAPES)
def test_every_site_of_every_token_keeps_exactly_k(name, corpus):
    loaded = tiny(name)
    method = LaRoSA(sparsity=0.3, tokens=512, window=64)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    adapter = adapter_for(loaded.model)
    seen = {}

    def watch(key):
        def hook(module, inputs):
            seen[key] = inputs[0]

        return hook

    with method.apply(loaded.model, loaded.tokenizer, artifact):
        for index, layer in enumerate(adapter.decoder_layers(loaded.model)):
            for site in adapter.sites:
                for reader, reader_name in zip(
                    adapter.readers(layer, site), site.readers, strict=True
                ):
                    reader.register_forward_pre_hook(watch((index, reader_name)))
        loaded.model(random_inputs(loaded.model, 2, 20))
    assert len(seen) == 3 * sum(len(site.readers) for site in adapter.sites)
    for x in seen.values():
        width = x.shape[-1]
        assert ((x != 0).sum(-1) == width - round(0.3 * width)).all()


def test_achieved_sparsity_is_counted_and_weighted_by_bytes(tiny_llama, corpus):
    method = LaRoSA(sparsity=0.5, tokens=512, window=64)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    with method.apply(tiny_llama.model, tiny_llama.tokenizer, artifact) as applied:
        applied.recording = True
        tiny_llama.model(random_inputs(tiny_llama.model, 1, 16))
        section = applied.measured()["sparsity"]
    assert section["requested"] == 0.5
    assert section["sites"] == dict.fromkeys(("h1", "h2", "h3", "h4"), 0.5)
    assert section["achieved"] == pytest.approx(0.5)
    # Llama of width 64, MLP 160, two of four heads for keys and values: weights per layer.
    dense = 64 * (64 + 32 + 32) + 64 * 64 + 2 * 64 * 160 + 160 * 64
    assert section["bytes_fraction"] == pytest.approx((0.5 * dense + 2 * 64 * 64) / dense)
    assert section["bytes_read_fraction"] == pytest.approx(1 + 2 * 64 * 64 / dense)


def test_nothing_is_counted_unless_asked(tiny_llama, corpus):
    method = LaRoSA(tokens=512, window=64)
    artifact = method.calibrate(tiny_llama.model, tiny_llama.tokenizer, corpus)
    with method.apply(tiny_llama.model, tiny_llama.tokenizer, artifact) as applied:
        tiny_llama.model(random_inputs(tiny_llama.model, 1, 16))
        with pytest.raises(ZeroDivisionError):
            applied.measured()


@pytest.mark.parametrize("basis", list(Basis))
def test_threshold_reaches_the_sparsity_on_the_activations_it_was_calibrated_on(corpus, basis):
    loaded = tiny()
    method = LaRoSA(
        sparsity=0.4, basis=basis, selection=Selection.threshold, tokens=2048, window=128
    )
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    windows = token_windows(corpus.documents(Split.calibration), loaded.tokenizer, 16, 128)
    seen = []
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        # Later sites read what the sparsification before them has changed.
        first = adapter_for(loaded.model).decoder_layers(loaded.model)[0].self_attn.q_proj
        with observed(first, seen.append):
            loaded.model(windows)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.005)


def test_plain_magnitude_needs_no_tensors(tiny_llama, corpus):
    artifact = LaRoSA(basis=Basis.none, tokens=512, window=64).calibrate(
        tiny_llama.model, tiny_llama.tokenizer, corpus
    )
    assert artifact.tensors == {}


def test_rotation_loses_less_than_plain_magnitude_where_energy_is_concentrated():
    """Activations that lie in few directions, none of them along an axis."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    x = torch.randn(500, 64, generator=generator) * torch.logspace(0, -2, 64) @ mix
    linear = torch.nn.Linear(64, 32, bias=False)
    dense = linear(x)

    def error(transform):
        keep = topk(0.6, 64)
        sparsifier = SiteSparsifier("h2", [linear], keep, transform, Applied(tokenizer=None))
        with sparsified(torch.nn.Module(), Site("h2", ("linear",)), sparsifier):
            return (linear(x) - dense).norm().item()

    axes = pca(x.double().T @ x.double())[1].float()
    assert error(axes) < 0.3 * error(None)
