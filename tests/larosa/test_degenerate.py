"""Models with parts that do nothing, and corpora with no text to spare."""

import pytest
import torch

from tests.conftest import random_inputs, tiny
from trimtab.corpus import Corpus, Split
from trimtab.larosa import Basis, Count, LaRoSA, Precision, RotationScope, Selection, Transforms

SMALL = {"tokens": 512, "window": 64, "probe_tokens": 256}


@pytest.mark.parametrize("dead", ["mlp.down_proj", "self_attn.o_proj", "post_attention_layernorm"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"transforms": Transforms.all, "precision": Precision.model},
        {"basis": Basis.output_pca, "residual": RotationScope.layer},
    ],
    ids=["default", "all", "residual"],
)
def test_a_layer_whose_part_was_pruned_to_nothing_calibrates_and_runs(corpus, dead, settings):
    loaded = tiny()
    loaded.model.model.layers[1].get_submodule(dead).weight.data.zero_()
    method = LaRoSA(sparsity=0.0, count=Count.nominal, **SMALL, **settings)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus)
    ids = random_inputs(1, 16)
    expected = loaded.model(ids).logits
    with method.apply(loaded.model, loaded.tokenizer, artifact):
        torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-4, rtol=1e-3)


def test_without_validation_text_thresholds_are_found_on_the_calibration_text(corpus, capsys):
    documents = [document for split in Split for document in corpus.splits[split]]
    without = Corpus("words", documents, calibration=0.7, validation=0.0)
    assert not without.splits[Split.validation]
    loaded = tiny()
    artifact = LaRoSA(**SMALL).calibrate(loaded.model, loaded.tokenizer, without)
    assert artifact.statistics["thresholds"] == "calibration"
    assert "No validation text" in capsys.readouterr().err
    counted = LaRoSA(**SMALL, selection=Selection.topk)
    assert "thresholds" not in counted.calibrate(loaded.model, loaded.tokenizer, without).statistics
