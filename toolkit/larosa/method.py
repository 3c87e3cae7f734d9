"""LaRoSA as a method: calibrate transforms and thresholds, apply them to a live model.

Layerwise rotated sparse activation (arXiv 2507.01299). The transform stands after the norm of a
site, where it is simple and exact on every architecture: the residual stream stays as it is, and
the inverse goes into the weights that read the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifact import Artifact
from toolkit.corpus import Corpus, Split, token_windows
from toolkit.errors import ConfigError
from toolkit.larosa.calibrate import calibrate_layers
from toolkit.larosa.rotation import Basis
from toolkit.larosa.sparsify import (
    SiteSparsifier,
    above,
    sparsified,
    sparsity_section,
    topk,
)
from toolkit.method import Applied, Calibration, Method, Stage
from toolkit.models.adapter import adapter_for, input_major, input_width
from toolkit.progress import track

KERNEL = "reference: masked dense product in PyTorch, no weight is skipped"


class Selection(StrEnum):
    """How the activations to keep are chosen."""

    topk = "topk"
    threshold = "threshold"


@dataclass
class LaRoSA(Method):
    """Rotate activations onto their principal axes and drop the small ones, for every token.

    Parameters
    ----------
    sparsity : float
        Share of the activations dropped at every site, in [0, 1). Nominal: the transforms'
        own cost is not in it, see ``sparsity.bytes_fraction`` in result.json.
    basis : Basis
        Of h1 and h3, each for its own activations. `pca` rotates them onto their principal axes;
        `output_pca` onto the axes of what the weights make of them; `none` leaves them, which
        makes it plain magnitude sparsity.
    selection : Selection
        `topk` keeps exactly the same count for every token; `threshold` keeps what exceeds a
        magnitude calibrated for each site and layer, so the count varies from token to token.
    tokens, window : int
        Calibration tokens, and how many of them make one window of text.
    """

    name: ClassVar[str] = "larosa"
    stage: ClassVar[Stage] = Stage.weights

    sparsity: float = 0.4
    basis: Basis = Basis.output_pca
    selection: Selection = Selection.topk
    tokens: int = 16384
    window: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ConfigError("larosa.sparsity", self.sparsity, "expected a share in [0, 1)")
        if self.window < 2:
            raise ConfigError("larosa.window", self.window, "expected at least 2 tokens")
        if self.tokens < self.window:
            raise ConfigError("larosa.tokens", self.tokens, "expected at least one window")

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the architecture has no adapter."""
        adapter_for(model)

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
    ) -> Calibration:
        """Find the transforms and thresholds, see `calibrate_layers`."""
        documents = corpus.documents(Split.calibration)
        windows = token_windows(documents, tokenizer, self.tokens // self.window, self.window)
        return calibrate_layers(
            model,
            windows,
            checkpoint,
            basis=self.basis,
            threshold_share=self.sparsity if self.selection is Selection.threshold else None,
        )

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[Applied]:
        """Sparsify every site of every decoder layer for the time of the ``with``."""
        assert artifact is not None, "larosa is a calibrated method"
        adapter = adapter_for(model)
        applied = Applied(tokenizer, kernel=KERNEL)
        sparsifiers: list[SiteSparsifier] = []
        applied.measured = lambda: {"sparsity": sparsity_section(sparsifiers, self.sparsity)}
        layers = adapter.decoder_layers(model)
        with ExitStack() as undo:
            for index, layer in enumerate(track(layers, "Applying larosa", len(layers))):
                for site in adapter.sites:
                    prefix = f"layers.{index}.{site.name}."
                    part = self._sparsifier(
                        site.name, adapter.readers(layer, site), artifact.tensors, prefix, applied
                    )
                    undo.enter_context(sparsified(layer, site, part))
                    sparsifiers.append(part)
                    applied.extra_step_bytes += part.transform_bytes
            yield applied

    def _sparsifier(
        self,
        site: str,
        readers: list[torch.nn.Module],
        tensors: dict[str, Tensor],
        prefix: str,
        applied: Applied,
    ) -> SiteSparsifier:
        if self.selection is Selection.topk:
            keep = topk(self.sparsity, input_width(readers[0]))
        else:
            keep = above(float(tensors[prefix + "threshold"]))
        transform = tensors.get(prefix + "transform")
        if transform is not None:
            weight = input_major(readers[0])
            transform = transform.to(weight.device, weight.dtype)
        return SiteSparsifier(site, readers, keep, transform, applied)
