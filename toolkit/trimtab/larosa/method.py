"""LaRoSA as a method: layerwise rotated sparse activation (arXiv 2507.01299)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trimtab.errors import MisfitError
from trimtab.larosa.settings import LaRoSASettings, RotationScope, Selection
from trimtab.method import Calibration, Method, Stage
from trimtab.settings import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.artifact import Artifact
    from trimtab.corpus import Corpus
    from trimtab.larosa.account import AppliedLaRoSA


@settings
class LaRoSA(LaRoSASettings, Method):
    """Rotate activations onto principal axes, drop the small ones, and skip their weights."""

    name: ClassVar[str] = "larosa"
    stage: ClassVar[Stage] = Stage.weights

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the model has no adapter or cannot be made sparse as asked."""
        from trimtab.larosa.modules import SparseNorm
        from trimtab.larosa.replaceable import (
            require_no_global_hooks,
            require_replaceable,
            require_unshared,
        )
        from trimtab.models.adapter import adapter_for

        adapter = adapter_for(model)
        if any(isinstance(module, SparseNorm) for module in model.modules()):
            raise MisfitError(
                "the model is sparse already: leave the `with` that made it so, or load the "
                "original one, to calibrate or apply LaRoSA"
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise MisfitError(
                "part of the model is offloaded by model.device_map, and LaRoSA rewrites weights "
                "in memory: load it without offloading, or in a dtype in which it fits"
            )
        layers = {f"{adapter.layers}.{index}": layer
                  for index, layer in enumerate(adapter.decoder_layers(model))}  # fmt: skip
        rotated = self.residual is not RotationScope.none
        require_no_global_hooks()
        for place, layer in layers.items():
            require_replaceable(adapter, layer, place, rotated=rotated)
        require_unshared(layers.items())
        if adapter.post_norms and rotated:
            raise MisfitError(
                f"{type(model).__name__} normalises what attention and MLP add to the residual "
                "stream, so that a rotation of it cannot be absorbed: use larosa.residual=none"
            )

    def claims(self, model: PreTrainedModel) -> frozenset[str]:
        """Return the norms and the linear layers of every site of every decoder layer."""
        from trimtab.models.adapter import adapter_for

        adapter = adapter_for(model)
        names = {
            name
            for site in adapter.sites
            for name in (*site.readers, *([site.norm] if site.norm else []))
        }
        count = len(adapter.decoder_layers(model))
        return frozenset(f"{adapter.layers}.{i}.{name}" for i in range(count) for name in names)

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
    ) -> Calibration:
        """Find bases and sparsities (`Calibrator`), then thresholds (`find_thresholds`).

        Where settings are left to choose, it is done for every candidate, and the best is kept
        (`comparison.best`).

        Thresholds are found on the validation documents: on the text that the bases were made
        for, activations are a little more concentrated than on any other.
        """
        from trimtab import shards
        from trimtab.corpus import Split
        from trimtab.larosa.auto import concrete
        from trimtab.larosa.calibrate import Calibrator
        from trimtab.larosa.comparison import Made, best
        from trimtab.larosa.thresholds import find_thresholds
        from trimtab.models.facts import require_positions
        from trimtab.progress import say
        from trimtab.windows import token_windows

        require_positions(model.config, self.window, f"larosa.window={self.window}")
        documents = corpus.documents(Split.calibration)
        windows = token_windows(documents, tokenizer, self.tokens // self.window, self.window)
        calibrator = Calibrator(model, windows, checkpoint, self)
        probes, found_on = calibrator.probes, Split.validation
        held_out = token_windows(
            corpus.splits[found_on], tokenizer, probes, self.window, fewer=True
        )
        if not len(held_out):
            held_out, found_on = windows[:probes], Split.calibration
        shards.require_windows(min(probes, len(held_out)))
        if found_on is Split.calibration and self.selection is not Selection.topk:
            say("No validation text: thresholds are found on the calibration text")
        calibrator.measure()

        def make(settings: LaRoSASettings) -> Made:
            plan, tensors, statistics = calibrator.planned(settings)
            if settings.selection is not Selection.topk:
                plan = find_thresholds(model, plan, tensors, held_out, self.dense_prefix)
                statistics |= {"thresholds": found_on.value, "threshold_tokens": held_out.numel()}
            return Made(settings, plan, tensors, statistics)

        if not self.leaves_choice:
            return make(self).calibration()
        if len(held_out) > 1:
            return best(model, concrete(self), make, held_out, found_on)
        return best(model, concrete(self), make, windows[:probes], Split.calibration)

    @contextmanager
    def applying(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[AppliedLaRoSA]:
        """Sparsify every site of every decoder layer for the time of the ``with``."""
        from trimtab.larosa.account import AppliedLaRoSA
        from trimtab.larosa.apply import sparsified
        from trimtab.larosa.plan import Plan
        from trimtab.larosa.selection import Selectors

        assert artifact is not None
        settings, plan = self._concrete(artifact), Plan.from_json(artifact.parameters["plan"])
        selectors = Selectors(plan, settings)
        with (
            sparsified(model, plan, artifact.tensors, selectors.selector) as sparse,
            selectors.following(model),
        ):
            candidates = artifact.statistics.get("candidates", [])
            yield AppliedLaRoSA(
                sparse, selectors.made, selectors.recorder, self.sparsity, candidates
            )

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        artifact: Artifact,
        folder: Path,
    ) -> None:
        """Save the sparse model, for `trimtab.load_model`, in one step.

        Parameters
        ----------
        folder : Path
            It gets the configuration, the tokenizer where there is one, every tensor of the sparse
            model and a ``trimtab.json``. It must not exist, or be empty.

        Raises
        ------
        ArtifactError
            If the artifact is of another method, of other settings or of another model.
        MisfitError
            If the method does not fit the model, or no folder can hold what the model is.
        TrimtabError
            If the folder holds something, or transformers cannot save the configuration.
        """
        from trimtab.larosa.export import export

        self.check(model)
        artifact.require_method(self.name)
        artifact.require_unedited()
        artifact.require_settings(self)
        export(self._concrete(artifact), model, tokenizer, artifact, folder)

    def _concrete(self, artifact: Artifact) -> LaRoSA:
        """Return the settings with what calibration chose where they leave a choice."""
        return replace(self, **artifact.parameters.get("chosen", {}))

    @classmethod
    def load_exported(cls, folder: Path, device: str) -> PreTrainedModel:
        """Load a sparse model that `export` saved; see `trimtab.larosa.export.load_exported`."""
        from trimtab.larosa.export import load_exported

        return load_exported(folder, device)
