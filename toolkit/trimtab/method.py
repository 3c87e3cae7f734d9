"""The contract every method fulfils."""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

from hydra.utils import get_class
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact, ArtifactKey
from trimtab.corpus import Corpus
from trimtab.environment import package_versions, peak_host_bytes
from trimtab.errors import TrimtabError
from trimtab.models.fingerprint import fingerprint

NOT_CALIBRATED = "{name} needs no calibration: evaluate it with evaluate.py methods={name}"


class Stage(IntEnum):
    """What a method touches; a stack applies its methods in this order."""

    vocabulary = 1
    weights = 2
    cache = 3


@dataclass
class Applied:
    """A method at work on a model, as generation and evaluation see it.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of prompts from here on; the given one unless the vocabulary changed.
    output_tokenizer : PreTrainedTokenizerBase or None
        The tokenizer of what the model generates, where it is another one.
    alternatives : mapping
        Output tokens that stand for several of the given tokenizer's, and which.
    base_output : callable
        Returns a context in which the model predicts tokens of the given tokenizer alone.
    engine : mapping or None
        Settings of the generation engine's cache, where it generates instead of transformers.
    drafts : object or None
        Proposes tokens for the engine to verify, where there is one.
    kernel : str or None
        The kernel that runs on the model's device, or None where the method has none.
    extra_step_bytes : callable
        Returns the bytes that a decode step reads beyond the parameters the model then has, less
        those of them it skips, as counted while recording.
    recording : bool
        Whether the method should count what it does. Off while time is measured.
    measured : callable
        Returns sections of result.json, filled from what was counted while recording.
    """

    tokenizer: PreTrainedTokenizerBase
    output_tokenizer: PreTrainedTokenizerBase | None = None
    alternatives: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    base_output: Callable[[], AbstractContextManager[None]] = nullcontext
    engine: Mapping[str, Any] | None = None
    drafts: Any = None
    kernel: str | None = None
    extra_step_bytes: Callable[[], int] = int
    recording: bool = False
    measured: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass
class Calibration:
    """What `Method.fit` returns: an artifact's tensors, statistics in JSON, and other files."""

    tensors: dict[str, Any]
    statistics: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


class Method(ABC):
    """A training-free optimization. Subclasses are dataclasses: their fields are their config.

    Attributes
    ----------
    name : str
        Name of the method's configuration file and of its artifacts' folder.
    stage : Stage
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
        same number of threads.

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
    ) -> Artifact:
        """Calibrate on the corpus' calibration split.

        Parameters
        ----------
        checkpoint : Path, optional
            Folder that a killed calibration resumes from; a temporary one where None.

        Raises
        ------
        MisfitError
            If the method does not fit the model.
        TrimtabError
            If the corpus is too small.
        """
        self.check(model)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            calibration = self.fit(model, tokenizer, corpus, checkpoint or Path(scratch))
        return Artifact(
            key=self.key(fingerprint(model), corpus),
            model={
                "architecture": type(model).__name__,
                "dtype": str(model.dtype).removeprefix("torch."),
                "parameters": model.num_parameters(),
            },
            corpus={"name": corpus.name, "documents": corpus.document_digests()},
            statistics=calibration.statistics,
            run={
                "wall_seconds": time.perf_counter() - started,
                "device": str(model.device),
                "peak_host_bytes": peak_host_bytes(),
                "packages": package_versions(),
            },
            tensors=calibration.tensors,
            files=calibration.files,
        )

    def key(self, model_fingerprint: str, corpus: Corpus) -> ArtifactKey:
        """Return what the artifact of this method is found by."""
        return ArtifactKey(self.name, self.config(), model_fingerprint, corpus.digest)

    @abstractmethod
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> AbstractContextManager[Applied]:
        """Change `model` for the time of the ``with`` and restore it bit for bit afterwards."""


def build(node: Mapping[str, Any]) -> Method:
    """Return the method that a configuration node describes, its types and ranges checked.

    Parameters
    ----------
    node : mapping
        The fields of the method, and its class as ``_target_``.

    Raises
    ------
    ConfigError
        For a value out of range.
    omegaconf.errors.OmegaConfBaseException
        For an unknown field or a value of the wrong type.
    """
    settings = dict(node)
    kind = get_class(settings.pop("_target_"))
    assert issubclass(kind, Method)
    typed = OmegaConf.merge({kind.name: OmegaConf.structured(kind)}, {kind.name: settings})
    built = OmegaConf.to_object(typed)
    assert isinstance(built, dict)
    method = built[kind.name]
    assert isinstance(method, Method)
    return method
