"""What `import trimtab` offers: calibrate, save and load, apply, generate, measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.arguments import require_language_model, require_path, require_tokenizer
from trimtab.artifact import Artifact
from trimtab.checkpoints import STAMP, alone, resumable, stamp_in
from trimtab.corpus import Corpus
from trimtab.errors import ArtifactError, TrimtabError
from trimtab.files import require_writable
from trimtab.method import EXPORTED, NOT_MADE, Method
from trimtab.models.fingerprint import fingerprint as fingerprint_of
from trimtab.models.load_errors import why_not_loaded
from trimtab.models.loading import resolve_device
from trimtab.models.pretrained import complete
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
        Folder from which a calibration that was killed goes on; without one it starts over. What
        is damaged, or other versions of the packages measured, is measured anew. It is removed
        when the calibration is done; another calibration that has it is waited for.

    Raises
    ------
    MisfitError
        If the method does not fit the model.
    TrimtabError
        If the method needs no calibration, the text is too short, or the checkpoint is of another
        calibration.
    """
    require_language_model(model)
    require_tokenizer(tokenizer)
    if not isinstance(method, Method):
        raise TrimtabError(f"method={method!r:.60}: expected a method, such as trimtab.LaRoSA()")
    if method.name not in targets("method"):
        raise TrimtabError(
            f"{type(method).__name__} has no file conf/method/{method.name}.yaml, by which its "
            "artifacts are applied: add it"
        )
    corpus = texts if isinstance(texts, Corpus) else Corpus.for_calibration(texts)
    if checkpoint is None:
        return method.calibrate(model, tokenizer, corpus)
    folder = require_path(checkpoint, "checkpoint")
    known = fingerprint_of(model)
    digest = method.key(known, tokenizer, corpus).digest
    require_writable("checkpoint", folder)
    with alone(folder, "checkpoint"):
        _require_own(folder, digest)
        with resumable(folder, digest):
            artifact = method.calibrate(model, tokenizer, corpus, folder, known=known)
        shutil.rmtree(folder, ignore_errors=True)
    return artifact


def _require_own(folder: Path, digest: str) -> None:
    """Refuse a checkpoint that is another calibration's, or none."""
    if folder.exists() and any(folder.iterdir()):
        found = stamp_in(folder) or {}
        if found.get("digest") != digest:
            raise TrimtabError(
                f"checkpoint={folder}: holds something else than this calibration (other settings, "
                f"another model or text, or a damaged {STAMP}): name another folder, or remove it"
            )


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
    require_language_model(model)
    require_tokenizer(tokenizer)
    if not isinstance(methods, Iterable) or isinstance(methods, str | Path | Mapping):
        kind = type(methods).__name__
        raise TrimtabError(f"methods is a {kind}: expected several; put a single one in a list")
    methods = list(methods)
    for one in methods:
        if isinstance(one, str | Path):
            raise TrimtabError(f"methods holds {one!r}: load an artifact first, with trimtab.load")
        if not isinstance(one, Artifact | Method):
            raise TrimtabError(
                f"methods holds {one!r:.60}: expected artifacts and methods, such as "
                "trimtab.VAttention()"
            )
    artifacts = {one.key.method: one for one in methods if isinstance(one, Artifact)}
    stack = Stack(one.method if isinstance(one, Artifact) else one for one in methods)
    for method in stack.methods:
        if method.calibrated and method.name not in artifacts:
            raise TrimtabError(NOT_MADE.format(name=method.name))
    return Optimized(model, tokenizer, stack, artifacts, fingerprint)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load a model that `Artifact.export` saved; it needs neither artifact nor original weights.

    Its tokenizer, where one was saved with it, is transformers' to load from the same folder.

    Raises
    ------
    ArtifactError
        If the folder is missing, damaged or of another version.
    """
    folder, place = require_path(folder), resolve_device(device)
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "there is no such folder"
        raise ArtifactError(f"{folder}: {found}; Artifact.export makes one")
    if not (folder / EXPORTED).exists():
        try:
            plain = complete(folder)
        except Exception as error:  # transformers raises many unrelated types
            reason = why_not_loaded(folder, error, tokenizer=False)
            raise ArtifactError(f"{folder}: {reason}") from error
        nn.Module.to(plain.requires_grad_(False), place)
        return plain
    known: dict[str, Any] = targets("method")
    try:
        name = json.loads((folder / EXPORTED).read_text("utf-8"))["method"]
        kind = known[name]
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{folder / EXPORTED} names no method of {', '.join(known)}: export the model again"
        ) from error
    model: PreTrainedModel = kind.load_exported(folder, str(place))
    return model
