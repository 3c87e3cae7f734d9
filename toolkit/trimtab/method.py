"""The contract every method fulfils."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trimtab.errors import MisfitError, TrimtabError

# Imported when a method is put to use: naming one and its settings takes neither PyTorch nor
# transformers, so that a mistyped command is refused at once.
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.artifact import Artifact, ArtifactKey
    from trimtab.corpus import Corpus

NOT_CALIBRATED = "{name} needs no calibration: evaluate it with evaluate.py methods={name}"

NOT_MADE = (
    "{name} is applied by its artifact: make one with trimtab.calibrate, or load one with "
    "trimtab.load"
)

EXPORTED = "trimtab.json"  # in an exported model's folder: the method that has to load it

# What a method may claim besides modules of the model.
TOKENIZER, DRAFTS, KV_CACHE = "tokenizer", "drafts", "KV cache"


class Stage(IntEnum):
    """When in a stack a method is applied."""

    vocabulary = 1
    weights = 2
    cache = 3


@dataclass
class Calibration:
    """What `Method.fit` returns, see the attributes of `Artifact` by the same names."""

    tensors: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class Method(ABC):
    """A training-free optimization. Subclasses are dataclasses: their fields are their config.

    Attributes
    ----------
    name : str
        Name of the method's configuration file and of its artifacts' folder.
    stage : Stage
        A stack applies the vocabulary's methods first, then the weights', then the cache's.
    calibrated : bool
        Whether the method needs an artifact.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    calibrated: ClassVar[bool] = True

    def config(self) -> dict[str, Any]:
        """Return the method's configuration as JSON values."""
        assert is_dataclass(self)
        return {key: getattr(value, "value", value) for key, value in asdict(self).items()}

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the method does not fit the model."""

    @abstractmethod
    def claims(self, model: PreTrainedModel) -> frozenset[str]:
        """Return what the method changes, which no other method of a stack may change too.

        Names of the model's modules, each with all it holds, and `TOKENIZER`, `DRAFTS` and
        `KV_CACHE`.
        """

    def changes(self, model: PreTrainedModel) -> bool:
        """Return whether the method changes what the model computes with, or is read by."""
        return not self.claims(model) <= {DRAFTS, KV_CACHE}

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path,
    ) -> Calibration:
        """Measure what the method needs to know about the model.

        Deterministic: a calibration that was killed and started again on the same `checkpoint`
        folder returns the same tensors and statistics, bit for bit, on the same machine with the
        same number of threads. So do several processes that share it (`trimtab.shards`).

        Parameters
        ----------
        checkpoint : Path
            Folder for intermediate results, to be created with the first of them. What it holds
            already is of this very calibration.

        Raises
        ------
        TrimtabError
            If the method needs no calibration.
        """
        raise TrimtabError(NOT_CALIBRATED.format(name=self.name))

    def calibrate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        checkpoint: Path | None = None,
        *,
        known: str | None = None,
    ) -> Artifact:
        """Calibrate on the corpus' calibration split.

        Parameters
        ----------
        checkpoint : Path, optional
            Folder that a killed calibration resumes from; a temporary one where None.
        known : str, optional
            The model's fingerprint, where the caller has it: taking it reads all weights.

        Raises
        ------
        MisfitError
            If the method or the tokenizer does not fit the model, or a method that is at work on
            it; if the model sees later tokens, or was loaded under `torch.inference_mode`.
        TrimtabError
            If the corpus is too small, or what the model predicts is not finite.
        """
        from trimtab import shards
        from trimtab.arguments import require_model, require_tokenizer
        from trimtab.artifact import Artifact
        from trimtab.at_work import require_free
        from trimtab.corpus import encode
        from trimtab.environment import package_versions, peak_host_bytes
        from trimtab.files import temporary_folder
        from trimtab.models.changes import lock_of
        from trimtab.models.dtypes import require_dtypes_that_work
        from trimtab.models.facts import require_known_tokens
        from trimtab.models.fingerprint import fingerprint
        from trimtab.models.misfits import require_unpaged_attention
        from trimtab.models.predictions import require_predictions
        from trimtab.models.state import inferring, is_compiled, own_modes, uncompiled

        require_model(model)
        with lock_of(model), own_modes():
            require_free(self, model)
            self.check(model)
            require_tokenizer(tokenizer)
            require_dtypes_that_work(model)
            require_unpaged_attention(model)
            if any(parameter.is_inference() for parameter in model.parameters()):
                raise MisfitError(
                    "the model was loaded under torch.inference_mode, where tensors take no part "
                    "in gradients: load it outside"
                )
            texts = [one.text for documents in corpus.splits.values() for one in documents]
            require_known_tokens(model, tokenizer, texts)
            started = time.perf_counter()
            place = nullcontext(checkpoint) if checkpoint else temporary_folder()
            stance = uncompiled() if is_compiled(model) else nullcontext()
            with place as folder, inferring(model), stance:
                for text in texts[:1]:
                    require_predictions(model, encode(tokenizer, text))
                calibration = self.fit(model, tokenizer, corpus, folder)
        return Artifact(
            key=self.key(known or fingerprint(model), tokenizer, corpus),
            model={
                "architecture": type(model).__name__,
                "dtype": str(model.dtype).removeprefix("torch."),
                "parameters": model.num_parameters(),
            },
            corpus={"name": corpus.name, "documents": corpus.document_likenesses()},
            parameters=calibration.parameters,
            statistics=calibration.statistics,
            run={
                "wall_seconds": time.perf_counter() - started,
                "device": str(model.device),
                "processes": shards.count(),
                "peak_host_bytes": peak_host_bytes(),
                "packages": package_versions(),
            },
            tensors=calibration.tensors,
            files=calibration.files,
        )

    def key(
        self, model_fingerprint: str, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
    ) -> ArtifactKey:
        """Return what the artifact of this method is found by."""
        from trimtab.artifact import ArtifactKey
        from trimtab.models.fingerprint import tokenizer_fingerprint

        tokens = tokenizer_fingerprint(tokenizer)
        return ArtifactKey(self.name, self.config(), model_fingerprint, tokens, corpus.digest)

    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
        *,
        known: str | None = None,
    ) -> AbstractContextManager[Any]:
        """Change `model` for the time of a ``with``; whether it may be is checked at once.

        Enter it at once, too: what is edited between the two is not noticed. The model is in
        evaluation mode and without gradients meanwhile.

        Parameters
        ----------
        known : str, optional
            The model's fingerprint, where the caller has it: taking it reads all weights.

        Returns
        -------
        context manager
            It yields what `applying` does.

        Raises
        ------
        ArtifactError
            If the artifact was edited, is of another method, of other settings or of another
            model; or of another tokenizer, where that matters.
        MisfitError
            If the method does not fit the model or a method that is at work on it.
        TrimtabError
            If the method needs an artifact and there is none, or needs none and there is one.
        """
        from trimtab.arguments import require_model, require_tokenizer
        from trimtab.artifact import Artifact
        from trimtab.at_work import require_free
        from trimtab.models.fingerprint import fingerprint

        require_model(model)
        require_free(self, model)
        self.check(model)
        if self.calibrated:
            if artifact is None:
                raise TrimtabError(NOT_MADE.format(name=self.name))
            if not isinstance(artifact, Artifact):
                raise TrimtabError(f"artifact={artifact!r:.60}: expected an Artifact")
            artifact.require_method(self.name)
            artifact.require_unedited()
            artifact.require_settings(self)
            artifact.require_model(known or fingerprint(model))
            if self.claims(model) & {TOKENIZER, DRAFTS}:
                require_tokenizer(tokenizer)
                artifact.require_tokenizer(tokenizer)
        elif artifact is not None:
            raise TrimtabError(f"{self.name} takes no artifact: apply it without one")
        return self._applied(model, tokenizer, artifact)

    @contextmanager
    def _applied(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[object]:
        from trimtab.at_work import at_work
        from trimtab.models.refusals import refusing
        from trimtab.models.state import in_own_modes, inferring

        changes = self.changes(model)
        with at_work(self, model), inferring(model), ExitStack() as undo:
            if changes:  # modules that are put aside now
                undo.enter_context(refusing(model, self.name))
            part = undo.enter_context(in_own_modes(self.applying(model, tokenizer, artifact)))
            if changes:  # and modules that have taken their place
                undo.enter_context(refusing(model, self.name))
            yield part

    @abstractmethod
    def applying(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> AbstractContextManager[object]:
        """Do what `apply` promises, and restore the model bit for bit afterwards.

        What the context yields fulfils those protocols of `trimtab.capabilities` that say what
        the method offers.

        Parameters
        ----------
        artifact : Artifact or None
            The method's own, of this very model; None where the method needs none.
        """

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        artifact: Artifact,
        folder: Path,
    ) -> None:
        """Save `model` as the method makes it, for `trimtab.load_model`.

        Parameters
        ----------
        model : PreTrainedModel
            The one the artifact was calibrated on.
        tokenizer : PreTrainedTokenizerBase or None
            Saved with the model, where there is one.

        Raises
        ------
        MisfitError
            If what the method makes is no model that can be saved.
        """
        raise MisfitError(f"{self.name} leaves no model to save: apply its artifact instead")

    @classmethod
    def load_exported(cls, folder: Path, device: str) -> PreTrainedModel:
        """Load what `export` saved, where it takes more than transformers to load it.

        Raises
        ------
        MisfitError
            If the method saves no such models.
        """
        raise MisfitError(f"{folder}: {cls.name} saves no models of its own kind")
