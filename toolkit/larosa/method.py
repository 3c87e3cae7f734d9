"""LaRoSA as a method: calibrate rotations and thresholds, apply them to a live model.

Layerwise rotated sparse activation (arXiv 2507.01299). This version puts the rotation after the
norm of a site, where it is simple and exact on every architecture: the residual stream stays as
it is, and the inverse goes into the weights that read the site.
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
from toolkit.larosa.sparsify import (
    SiteSparsifier,
    above,
    sparsified,
    sparsity_section,
    topk,
)
from toolkit.method import Applied, Calibration, Method, Stage
from toolkit.models.adapter import adapter_for, input_major, input_width

KERNEL = "reference: masked dense product in PyTorch, no weight is skipped"


class Basis(StrEnum):
    """The basis in which activations are dropped at the sites behind a norm (h1 and h3)."""

    pca = "pca"
    none = "none"


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
        `pca` rotates h1 and h3, each by the principal axes of its own activations; `none`
        rotates nothing, which makes it plain magnitude sparsity.
    selection : Selection
        `topk` keeps exactly the same count for every token; `threshold` keeps what exceeds a
        magnitude calibrated for each site and layer, so the count varies from token to token.
    tokens, window : int
        Calibration tokens, and how many of them make one window of text.
    """

    name: ClassVar[str] = "larosa"
    stage: ClassVar[Stage] = Stage.weights

    sparsity: float = 0.4
    basis: Basis = Basis.pca
    selection: Selection = Selection.topk
    tokens: int = 8192
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
        """Find the rotations and thresholds; tensors are named ``layers.<index>.<site>.<what>``."""
        documents = corpus.documents(Split.calibration)
        windows = token_windows(documents, tokenizer, self.tokens // self.window, self.window)
        return calibrate_layers(
            model,
            windows,
            checkpoint,
            rotate=self.basis is Basis.pca,
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
        with ExitStack() as undo:
            for index, layer in enumerate(adapter.decoder_layers(model)):
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
        rotation = tensors.get(prefix + "rotation")
        if rotation is not None:
            weight = input_major(readers[0])
            rotation = rotation.to(weight.device, weight.dtype)
        return SiteSparsifier(site, readers, keep, rotation, applied)
