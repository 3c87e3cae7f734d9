"""Find the artifact that a method, a model and a corpus imply, or make it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from trimtab import shards
from trimtab.artifact import Artifact
from trimtab.checkpoints import alone, resumable
from trimtab.corpus import Corpus
from trimtab.errors import MissingArtifactError
from trimtab.method import Method
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel
from trimtab.progress import say
from trimtab.stack import AppliedStack, Stack


def calibrate(
    loaded: LoadedModel,
    method: Method,
    corpus: Corpus,
    root: str | Path,
    *,
    force: bool = False,
    after: Sequence[str] = (),
) -> tuple[Artifact, Path]:
    """Return the artifact and its folder, calibrating only where there is none yet.

    A calibration that was killed is resumed, by the same versions of the packages; one that another
    process is at is waited for.
    Nothing under the artifact's own folder is written before all of it is there. Of processes that
    share it (`trimtab.shards`), one takes the lock and writes.

    Parameters
    ----------
    force : bool
        Calibrate from the start, and replace an artifact that exists.
    after : sequence of str
        The methods that made the model what it is.

    Raises
    ------
    ArtifactError
        If an artifact exists and is damaged.
    ConfigError
        If `root` cannot be written.
    MisfitError
        If the method does not fit the model.
    """
    folder = method.key(loaded.fingerprint, loaded.tokenizer, corpus).folder(root, loaded.name)
    if _needed(folder, force):
        with alone(folder, "artifacts") if shards.writes() else nullcontext():
            if _needed(folder, force):  # unless made while this process waited
                return _make(loaded, method, corpus, folder, force, after), folder
    artifact = find(loaded, method, corpus, root)
    say(f"Found: {folder}")
    return artifact, folder


def _needed(folder: Path, force: bool) -> bool:
    return bool(shards.agreed(force or not folder.exists()))


def _make(
    loaded: LoadedModel,
    method: Method,
    corpus: Corpus,
    folder: Path,
    force: bool,
    after: Sequence[str],
) -> Artifact:
    checkpoint = folder.with_name(f".{folder.name}.unfinished")
    why = "as force=true asks" if force else "there is no artifact with these settings yet"
    adapted = f" as {' and '.join(after)} made it" if after else ""
    say(
        f"Calibrating {method.name} for {loaded.name}{adapted} on {corpus.name}: {why}; the bars "
        "show the time that each pass has left"
    )
    if force and shards.writes():
        shutil.rmtree(checkpoint, ignore_errors=True)
    with resumable(checkpoint, folder.name) if shards.writes() else nullcontext():
        shards.wait()
        artifact = method.calibrate(
            loaded.model, loaded.tokenizer, corpus, checkpoint, known=loaded.fingerprint
        )
    artifact.model["source"] = loaded.source
    shards.wait()  # until nobody needs the checkpoint any more
    if shards.writes():
        artifact.save(folder, replace=force)
        shutil.rmtree(checkpoint, ignore_errors=True)
    say(
        f"Calibrated {method.name} in {artifact.run['wall_seconds']:.1f} s, peak memory "
        f"{artifact.run['peak_host_bytes'] / 2**30:.2f} GiB"
    )
    return artifact


def find(
    loaded: LoadedModel,
    method: Method,
    corpus: Corpus,
    root: str | Path,
    after: Sequence[str] = (),
) -> Artifact:
    """Return the artifact, verified.

    Parameters
    ----------
    after : sequence of str
        The methods that made the model what it is.

    Raises
    ------
    MissingArtifactError
        If there is none.
    ArtifactError
        If it is damaged or of another model.
    """
    key = method.key(loaded.fingerprint, loaded.tokenizer, corpus)
    folder = key.folder(root, loaded.name)
    if not folder.exists():
        place = f"for {loaded.name} on {corpus.name} (looked for {folder})"
        if after:
            raise MissingArtifactError(
                f"no artifact of {method.name} on top of {', '.join(after)} {place}: calibrate.py "
                "makes it with the same methods=..., or leave on_missing=calibrate"
            )
        settings = " ".join(
            f"{name}={'null' if value is None else value}"
            for name, value in method.config().items()
            if value != type(method)().config()[name]
        )
        raise MissingArtifactError(
            f"no artifact of {method.name} {place}: make it with calibrate.py "
            f"{f'method={method.name} {settings}'.strip()} and the same model and corpus, or leave "
            "on_missing=calibrate"
        )
    artifact = Artifact.load(folder)
    artifact.verify(key)
    return artifact


def artifacts_for(
    stack: Stack,
    loaded: LoadedModel,
    corpus: Corpus,
    root: str | Path,
    *,
    make: bool,
    force: bool = False,
) -> dict[str, Artifact]:
    """Return the artifacts of a stack's methods, by their names.

    Each is of the model as the methods before leave it: what adapts to a text's activations has
    to see them in the tokens that will be read.

    Parameters
    ----------
    make : bool
        Calibrate what is missing.
    force : bool
        Calibrate all of them, and replace those that exist.

    Raises
    ------
    MissingArtifactError
        If one is missing and may not be made.
    ArtifactError
        If one is damaged or of another model.
    """
    found: dict[str, Artifact] = {}
    changed_by: list[str] = []
    calibrated = [method for method in stack.methods if method.calibrated]
    adapted, applied = loaded, AppliedStack(loaded.tokenizer, loaded.tokenizer)
    with ExitStack() as undo:
        for method in calibrated:
            if make:
                artifact, _ = calibrate(
                    adapted, method, corpus, root, force=force, after=changed_by
                )
            else:
                artifact = find(adapted, method, corpus, root, after=changed_by)
            found[method.name] = artifact
            if method is not calibrated[-1]:
                part = method.apply(loaded.model, applied.tokenizer, artifact)
                applied.add(undo.enter_context(part))
                if (changed := fingerprint(loaded.model)) != adapted.fingerprint:
                    changed_by.append(method.name)
                    adapted = replace(adapted, tokenizer=applied.tokenizer, fingerprint=changed)
    return found
