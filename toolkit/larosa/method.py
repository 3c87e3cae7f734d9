"""LaRoSA as a method: layerwise rotated sparse activation (arXiv 2507.01299)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifact import Artifact
from toolkit.corpus import Corpus, Split, token_windows
from toolkit.errors import MisfitError
from toolkit.larosa.account import Account
from toolkit.larosa.apply import sparsified
from toolkit.larosa.calibrate import Calibrator
from toolkit.larosa.plan import Plan
from toolkit.larosa.residual import Share
from toolkit.larosa.selection import Positions, Selector
from toolkit.larosa.settings import Settings
from toolkit.method import Applied, Calibration, Method, Stage
from toolkit.models.adapter import adapter_for


@dataclass
class LaRoSA(Settings, Method):
    """Rotate activations onto principal axes, drop the small ones, and skip the weights behind.

    The fields are those of `Settings`.
    """

    name: ClassVar[str] = "larosa"
    stage: ClassVar[Stage] = Stage.weights

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the architecture has no adapter, or cannot be rotated."""
        if adapter_for(model).post_norms and self.residual is not Share.none:
            raise MisfitError(
                f"{type(model).__name__} norms what attention and MLP add to the residual stream, "
                "so that a rotation of it cannot be absorbed: use larosa.residual=none"
            )

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
    ) -> Calibration:
        """Find bases, sparsities and thresholds, see `Calibrator.run`."""
        documents = corpus.documents(Split.calibration)
        windows = token_windows(documents, tokenizer, self.tokens // self.window, self.window)
        return Calibrator(model, windows, checkpoint, self).run()

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[Applied]:
        """Sparsify every site of every decoder layer for the time of the ``with``."""
        assert artifact is not None, "larosa is a calibrated method"
        plan = Plan.from_json(artifact.statistics["plan"])
        positions = Positions(self.dense_prefix, self.prefill)
        applied = Applied(tokenizer)

        selectors: list[Selector] = []

        def selector(site: str, layer: int) -> Selector:
            row = plan.sites[site][layer]
            selectors.append(Selector(site, row, self.selection, self.cap, positions, applied))
            return selectors[-1]

        with sparsified(model, plan, artifact.tensors, selector) as sparse:
            account = Account(sparse, selectors)
            applied.kernel = sparse.kernel
            applied.extra_step_bytes = account.extra_step_bytes
            applied.measured = lambda: {"sparsity": account.section(self.sparsity)}
            if positions.everywhere:
                yield applied
                return
            hook = model.base_model.register_forward_pre_hook(positions.observe, with_kwargs=True)
            try:
                yield applied
            finally:
                hook.remove()
