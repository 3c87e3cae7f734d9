"""Find the artifact that a method, a model and a corpus imply, or make it."""

from __future__ import annotations

import shutil
from pathlib import Path

from toolkit.artifact import Artifact
from toolkit.corpus import Corpus
from toolkit.errors import ArtifactError
from toolkit.method import Method
from toolkit.models import LoadedModel
from toolkit.progress import say


def calibrate(
    loaded: LoadedModel, method: Method, corpus: Corpus, root: str | Path, *, force: bool = False
) -> tuple[Artifact, Path]:
    """Return the artifact and its folder, calibrating only where there is none yet.

    A calibration that was killed is resumed. Nothing under the artifact's own folder is
    written before all of it is there.

    Parameters
    ----------
    force : bool
        Calibrate from the start, and replace an artifact that exists.

    Raises
    ------
    ArtifactError
        If an artifact exists and is damaged.
    MisfitError
        If the method does not fit the model.
    """
    folder = method.key(loaded.fingerprint, corpus).folder(root, loaded.name)
    checkpoint = folder.with_name(f".{folder.name}.unfinished")
    if folder.exists() and not force:
        say(f"Found: {folder}")
        return find(loaded, method, corpus, root), folder
    if force:
        shutil.rmtree(checkpoint, ignore_errors=True)
    artifact = method.calibrate(loaded.model, loaded.tokenizer, corpus, checkpoint)
    artifact.model["source"] = loaded.source
    artifact.save(folder, replace=force)
    shutil.rmtree(checkpoint, ignore_errors=True)
    say(
        f"Calibrated {method.name} in {artifact.run['wall_seconds']:.1f} s, peak memory "
        f"{artifact.run['peak_host_bytes'] / 2**30:.2f} GiB"
    )
    return artifact, folder


def find(loaded: LoadedModel, method: Method, corpus: Corpus, root: str | Path) -> Artifact:
    """Return the artifact, verified.

    Raises
    ------
    ArtifactError
        If there is none, or it is damaged or of another model.
    """
    key = method.key(loaded.fingerprint, corpus)
    folder = key.folder(root, loaded.name)
    if not folder.exists():
        settings = " ".join(
            f"{name}={'null' if value is None else value}"
            for name, value in method.config().items()
        )
        raise ArtifactError(
            f"no artifact of {method.name} for {loaded.name} on {corpus.name} (looked for "
            f"{folder}): make it with calibrate.py method={method.name} {settings} and the same "
            "model and corpus, or add on_missing=calibrate"
        )
    artifact = Artifact.load(folder)
    artifact.verify(key)
    return artifact
