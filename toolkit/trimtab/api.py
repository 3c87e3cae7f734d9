"""What `import trimtab` offers: calibrate, save and load, apply, generate, measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.corpus import Corpus
from trimtab.errors import ArtifactError, TrimtabError
from trimtab.method import EXPORTED, Method
from trimtab.optimized import Optimized
from trimtab.registry import targets
from trimtab.stack import Stack


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    texts: Iterable[str] | Corpus,
    *,
    checkpoint: str | Path | None = None,
) -> Artifact:
    """Measure what a method needs to know about a model.

    The model is as it was afterwards, its mode and its gradient flags included. No weight of it is
    trained.

    Parameters
    ----------
    texts : iterable of str or Corpus
        The text to calibrate on. Of a list, a fifth validates.
    checkpoint : str or Path, optional
        Folder from which a calibration that was killed goes on; without one it starts over.

    Raises
    ------
    MisfitError
        If the method does not fit the model.
    TrimtabError
        If the method needs no calibration, or the text is too short.
    """
    corpus = texts if isinstance(texts, Corpus) else Corpus.for_calibration(texts)
    folder = None if checkpoint is None else Path(checkpoint)
    return method.calibrate(model, tokenizer, corpus, folder)


def load(folder: str | Path) -> Artifact:
    """Read an artifact that `Artifact.save` or calibrate.py wrote, and verify every byte of it.

    Raises
    ------
    ArtifactError
        If it is missing, damaged or of another version.
    """
    return Artifact.load(folder)


def apply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    methods: Sequence[Artifact | Method],
    *,
    fingerprint: str | None = None,
) -> Optimized:
    """Return `model` with methods on it for the time of a ``with``.

    Parameters
    ----------
    methods : sequence of Artifact or Method
        In any order. Of a method that is calibrated, its artifact, which brings the settings.
    fingerprint : str, optional
        The model's, where the caller has it: taking it reads all weights.

    Raises
    ------
    MisfitError
        If a method is there twice, or needs an artifact and comes without.
    """
    if isinstance(methods, Artifact | Method):
        raise TrimtabError(f"methods={methods!r:.60}: expected several; put a single one in a list")
    artifacts = {one.key.method: one for one in methods if isinstance(one, Artifact)}
    stack = Stack(one.method if isinstance(one, Artifact) else one for one in methods)
    for method in stack.methods:
        if method.calibrated and method.name not in artifacts:
            raise TrimtabError(
                f"{method.name} is applied by its artifact: make one with trimtab.calibrate, or "
                "load one with trimtab.load"
            )
    return Optimized(model, tokenizer, stack, artifacts, fingerprint)


def load_model(folder: str | Path, device: str = "cpu") -> PreTrainedModel:
    """Load a model that `Artifact.export` saved; it needs neither artifact nor original weights.

    Its tokenizer, where one was saved with it, is transformers' to load from the same folder.

    Raises
    ------
    ArtifactError
        If the folder is missing, damaged or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder; Artifact.export makes it")
    if not (folder / EXPORTED).exists():
        plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, device_map=device)
        return plain
    known: dict[str, Any] = targets("method")
    try:
        name = json.loads((folder / EXPORTED).read_text("utf-8"))["method"]
        kind = known[name]
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{folder / EXPORTED} names no method of {', '.join(known)}: export the model again"
        ) from error
    model: PreTrainedModel = kind.load_exported(folder, device)
    return model
