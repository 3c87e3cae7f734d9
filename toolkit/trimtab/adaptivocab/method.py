"""AdaptiVocab as a method: n-grams of a domain as tokens, and as drafts (arXiv 2503.19693)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.adaptivocab.calibrate import Calibrator
from trimtab.adaptivocab.drafting import drafting
from trimtab.adaptivocab.extended import base_head, extended
from trimtab.adaptivocab.settings import Mode, Settings
from trimtab.adaptivocab.vocabulary import Vocabulary
from trimtab.artifact import Artifact
from trimtab.corpus import Corpus
from trimtab.errors import MisfitError
from trimtab.method import Applied, Calibration, Method, Stage
from trimtab.models.adapter import adapter_for


@dataclass
class AdaptiVocab(Settings, Method):
    """Make frequent n-grams of a domain tokens, or let them be drafts that the model verifies.

    The fields are those of `Settings`.
    """

    name: ClassVar[str] = "adaptivocab"
    stage: ClassVar[Stage] = Stage.vocabulary

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the model has no adapter, is not in memory or has a bias."""
        adapter_for(model)
        if self.mode is Mode.draft:
            return
        if any(parameter.is_meta for parameter in model.parameters()):
            raise MisfitError(
                "part of the model is offloaded by model.device_map, and new rows are fitted in "
                "memory: leave the offloading out, or use adaptivocab.mode=draft"
            )
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            raise MisfitError(
                f"the head of {type(model).__name__} has a bias, which new rows would need too: "
                "use adaptivocab.mode=draft"
            )

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
    ) -> Calibration:
        """Mine n-grams, fit their rows, turn the dial and count drafts, see `Calibrator`."""
        calibrator = Calibrator(model, tokenizer, corpus, checkpoint, self)
        vocabulary = calibrator.run()
        return Calibration(vocabulary.to_tensors(), calibrator.statistics, vocabulary.to_files())

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[Applied]:
        """Extend the vocabulary, draft, or both, for the time of the ``with``."""
        assert artifact is not None, "adaptivocab is a calibrated method"
        vocabulary = Vocabulary.from_artifact(artifact)
        applied = Applied(tokenizer)
        gate = artifact.statistics.get("gate", {})
        section: dict[str, Any] = {
            "merged": len(vocabulary.merged),
            "guard": self.max_bpb_increase,
            "dial": gate.get("dial"),
            "validation": gate["merged"][-1] if len(vocabulary.merged) and gate else None,
        }
        with ExitStack() as undo:
            if vocabulary.rows is not None:
                assert vocabulary.tokenizer is not None
                head: Any = model.get_output_embeddings()
                weight = head.weight
                output = self.mode is not Mode.input
                undo.enter_context(extended(model, vocabulary.rows, output=output))
                applied.tokenizer = vocabulary.tokenizer
                applied.output_tokenizer = vocabulary.tokenizer if output else tokenizer
                applied.base_output = lambda: base_head(model, weight)
                if output:
                    applied.alternatives = vocabulary.merged.by_id()
            counter = None
            if vocabulary.drafts is not None:
                counter = undo.enter_context(drafting(model, vocabulary.drafts))
                applied.drafts = vocabulary.drafts
            applied.measured = lambda: {
                "vocabulary": section
                | {
                    "drafting": {**asdict(counter), "undrafted": counter.undrafted}
                    if counter
                    else None
                }
            }
            yield applied
