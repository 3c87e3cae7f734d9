"""AdaptiVocab as a method: n-grams of a domain as tokens, and drafts (arXiv 2503.19693)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trimtab.adaptivocab.settings import AdaptiVocabSettings, Mode
from trimtab.errors import MisfitError
from trimtab.method import DRAFTS, TOKENIZER, Calibration, Method, Stage
from trimtab.settings import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.adaptivocab.applied import VocabularySection
    from trimtab.artifact import Artifact
    from trimtab.corpus import Corpus


@settings
class AdaptiVocab(AdaptiVocabSettings, Method):
    """Make frequent n-grams of a domain tokens, or draft for the model to verify."""

    name: ClassVar[str] = "adaptivocab"
    stage: ClassVar[Stage] = Stage.vocabulary

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where new rows cannot be added, or the architecture is not known."""
        from torch import Tensor, nn

        from trimtab.models.adapter import adapter_for

        adapter_for(model)
        if self.mode is Mode.draft:
            return
        if any(parameter.is_meta for parameter in model.parameters()):
            raise MisfitError(
                "part of the model is offloaded by model.device_map, and new rows are fitted in "
                "memory: leave the offloading out, or use adaptivocab.mode=draft"
            )
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear or type(head.weight.data) is not Tensor:
            raise MisfitError(
                f"the head of {type(model).__name__} is a {type(head).__name__}, and new rows are "
                "added to a plain nn.Linear: merge adapters and load without quantization, or use "
                "adaptivocab.mode=draft"
            )
        if head.bias is not None:
            raise MisfitError(
                f"the head of {type(model).__name__} has a bias, which new rows would need too: "
                "use adaptivocab.mode=draft"
            )
        for part in (head, model.get_input_embeddings()):
            if "weight" not in part._parameters:
                raise MisfitError(
                    f"the weight of a {type(part).__name__} of {type(model).__name__} is made of "
                    "others in every pass, and new rows are added to a parameter: make it one "
                    "(such as by torch.nn.utils.prune.remove), or use adaptivocab.mode=draft"
                )

    def claims(self, model: PreTrainedModel) -> frozenset[str]:
        """Return the drafts, or the tokenizer with the embedding and the head, or all of these."""
        drafts = {DRAFTS} if self.mode in (Mode.draft, Mode.auto) else set()
        if self.mode is Mode.draft:
            return frozenset(drafts)
        embeddings = model.get_input_embeddings(), model.get_output_embeddings()
        names = {name for name, part in model.named_modules() if part in embeddings}
        return frozenset(drafts | names | {TOKENIZER})

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
    ) -> Calibration:
        """Mine n-grams, fit their rows, keep to the quality budget and count drafts.

        See `Calibrator`. The model's own weights are not trained: only rows are fitted that are
        added to its embedding and its head, or that make room for these.
        """
        from trimtab.adaptivocab.calibrate import Calibrator
        from trimtab.models.facts import require_positions

        # A start token comes before every window.
        require_positions(model.config, self.window + 1, f"adaptivocab.window={self.window}")
        calibrator = Calibrator(model, tokenizer, corpus, checkpoint, self)
        vocabulary = calibrator.run()
        return Calibration(
            tensors=vocabulary.to_tensors(),
            statistics=calibrator.statistics,
            files=vocabulary.to_files(),
        )

    @contextmanager
    def applying(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[object]:
        """Extend the vocabulary, offer a drafter, or both, for the time of the ``with``."""
        from trimtab.adaptivocab.applied import Drafting, Merging, MergingAndDrafting, Unchanged
        from trimtab.adaptivocab.rows.extended import extended
        from trimtab.adaptivocab.tokenizer.extender import with_settings_of
        from trimtab.adaptivocab.vocabulary import Vocabulary

        assert artifact is not None
        found = Vocabulary.from_artifact(artifact)
        section = self._section(artifact, len(found.merged))
        drafting: dict[str, Any] = {} if found.drafter is None else {"drafter": found.drafter}
        if found.rows is None or found.tokenizer is None:
            yield Drafting(section, **drafting) if drafting else Unchanged(section)
            return
        output = self.mode is not Mode.input
        merged = with_settings_of(found.tokenizer, tokenizer)
        head: Any = model.get_output_embeddings()
        merging: dict[str, Any] = {
            "model": model,
            "base_head": head.weight,
            "tokenizer": merged,
            "output_tokenizer": merged if output else tokenizer,
            "ngram_tokens": found.merged.by_id() if output else {},
        }
        kind = MergingAndDrafting if drafting else Merging
        with extended(model, found.rows, output=output):
            yield kind(section, **drafting, **merging)

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        artifact: Artifact,
        folder: Path,
    ) -> None:
        """Save the model with its new rows and its new tokenizer, see `export.export`."""
        from trimtab.adaptivocab.export import export

        artifact.require_method(self.name)
        artifact.require_unedited()
        artifact.require_settings(self)
        export(model, tokenizer, artifact, folder)

    def _section(self, artifact: Artifact, merged: int) -> dict[str, Any]:
        """Return result.json's `vocabulary`."""
        measured = artifact.statistics.get("quality_budget", {})
        section: VocabularySection = {
            "merged": merged,
            "quality_budget": self.max_bpb_increase,
            "operating_points": measured.get("operating_points"),
            "validation": measured["merged"][-1] if merged and measured else None,
        }
        missing = [name for name, value in section.items() if value is None]
        return {**section, "reasons": {name: self._reason(name) for name in missing}}

    def _reason(self, name: str) -> str:
        """Say why a field of result.json's `vocabulary` is null."""
        if self.mode is Mode.draft and name != "quality_budget":
            return "adaptivocab.mode=draft: no n-gram is a token"
        if self.max_bpb_increase is None:
            return "adaptivocab.max_bpb_increase=null: there is no quality budget"
        return "no n-gram is within the quality budget"
