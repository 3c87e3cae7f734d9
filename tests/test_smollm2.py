"""What LaRoSA must reach on a real model and real text."""

import math

import pytest

from toolkit.config import PythonDocs, QualityConfig
from toolkit.corpus import Split, load_corpus
from toolkit.evaluation.quality import score
from toolkit.evaluation.text import quality_windows
from toolkit.larosa import Basis, LaRoSA
from toolkit.models import LoadedModel


@pytest.mark.smollm2
@pytest.mark.usefixtures("all_cores")
def test_the_output_basis_more_than_halves_what_magnitude_sparsity_loses(smollm2: LoadedModel):
    """At 0.4 on every site and token; a smaller run than the README's table, with its bounds."""
    corpus = load_corpus(PythonDocs(calibration=0.7, validation=0.1, max_documents=None))
    config = QualityConfig(windows=6, window_bytes=2048, context_bytes=256)
    windows = quality_windows(corpus.documents(Split.test), config)

    def perplexity() -> float:
        scores = [score(smollm2.model, smollm2.tokenizer, window) for window in windows]
        return math.exp(sum(s.nats for s in scores) / sum(s.tokens for s in scores))

    dense = perplexity()
    ratio = {}
    for basis in (Basis.none, Basis.output_pca):
        method = LaRoSA(sparsity=0.4, basis=basis)
        artifact = method.calibrate(smollm2.model, smollm2.tokenizer, corpus)
        with method.apply(smollm2.model, smollm2.tokenizer, artifact):
            ratio[basis] = perplexity() / dense
    assert ratio[Basis.output_pca] < 1.09, ratio
    assert ratio[Basis.none] > 1.15, ratio
    assert ratio[Basis.output_pca] - 1 < (ratio[Basis.none] - 1) / 2, ratio
