"""Artifacts: what a calibration leaves behind, found again by a digest of what went in.

``<root>/<model>/<method>/<digest>/artifact.json + tensors.safetensors``, and what
other files a method adds (a tokenizer).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.arguments import require_model, require_path, require_tokenizer
from trimtab.contents import differences, summaries
from trimtab.errors import ArtifactError
from trimtab.files import (
    ARTIFACT,
    publishing,
    require_writable,
    save_tensors,
    sha256_of_file,
    sha256_of_json,
    write_json,
)
from trimtab.method import EXPORTED, Method
from trimtab.models.fingerprint import tokenizer_fingerprint
from trimtab.registry import targets
from trimtab.settings import path_of

SCHEMA = 8
DESCRIPTION, TENSORS = ARTIFACT, "tensors.safetensors"


@dataclass(frozen=True)
class ArtifactKey:
    """What determines an artifact.

    Parameters
    ----------
    method : str
    config : dict
        The method's whole configuration, JSON values only.
    model_fingerprint, tokenizer_fingerprint, corpus_digest : str
    """

    method: str
    config: dict[str, Any]
    model_fingerprint: str
    tokenizer_fingerprint: str
    corpus_digest: str

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 over the key and the schema version."""
        return sha256_of_json({"schema": SCHEMA, **asdict(self)})[:16]

    def folder(self, root: str | Path, model: str) -> Path:
        """Return where the artifact of this key is kept under `root`, for a model's short name."""
        return folder_of(root, model, self.method, self.digest)


def folder_of(root: str | Path, model: str, method: str, digest: str) -> Path:
    """Return where an artifact is kept under `root`, by its names."""
    return path_of(root) / model / method / digest


@dataclass
class Artifact:
    """A calibrated method.

    What is edited in place after it was made or loaded is neither applied, exported nor saved, as
    its key would say otherwise; `dataclasses.replace` makes another artifact of it.

    Attributes
    ----------
    key : ArtifactKey
    model : dict
        The model's architecture, dtype and parameter count.
    corpus : dict
        The corpus' name and what copies of the documents in each split share
        (`Document.likeness`), so that an evaluation can prove itself held out.
    parameters : dict
        What applying the method takes besides tensors and files, JSON values only.
    statistics : dict
        What the calibration measured, JSON values only; reproducible to the bit.
    run : dict
        Packages, device, processes, wall time and memory: what differs from one run to the next.
    tensors : dict of str to Tensor
    files : dict of str to bytes
        Other files, by their path within the artifact's folder.
    """

    key: ArtifactKey
    model: dict[str, Any] = field(repr=False)
    corpus: dict[str, Any] = field(repr=False)
    parameters: dict[str, Any] = field(repr=False)
    statistics: dict[str, Any] = field(repr=False)
    run: dict[str, Any] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    _made: dict[str, object] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._made = self._summaries()

    def _summaries(self) -> dict[str, object]:
        values = {name: getattr(self, name) for name in ("parameters", "statistics")}
        return summaries({"key": asdict(self.key), **values}, self.tensors, self.files)

    @property
    def method(self) -> Method:
        """The method with the settings it was calibrated with.

        Raises
        ------
        ArtifactError
            If there is no method of that name.
        """
        known = targets("method")
        if self.key.method not in known:
            raise ArtifactError(
                f"the artifact {self.key.digest} is of the method {self.key.method}, which has no "
                f"file in conf/method; there are: {', '.join(known)}"
            )
        made = known[self.key.method](**self.key.config)
        assert isinstance(made, Method)
        return made

    def export(
        self,
        model: PreTrainedModel,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Save `model` as the method makes it: a folder for `trimtab.load_model`.

        Parameters
        ----------
        model : PreTrainedModel
            The one the artifact was calibrated on; it stays as it is.
        tokenizer : PreTrainedTokenizerBase, optional
            Saved too.

        Raises
        ------
        ArtifactError
            If `model` is another one, or the artifact was edited.
        MisfitError
            If what the method makes is no model that can be saved.
        """
        require_model(model)
        if tokenizer is not None:
            require_tokenizer(tokenizer)
        path = require_path(folder)
        require_writable("folder", path)
        self.method.export(model, tokenizer, self, path)

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Write the artifact as `folder` in one step: a reader never sees a part of it.

        Where `folder` holds the same artifact already, it is kept.

        Parameters
        ----------
        replace : bool
            Whether an artifact that is there, this one or another, is replaced.

        Raises
        ------
        ArtifactError
            If something else is there, or a damaged copy, or the artifact was edited.
        """
        self.require_unedited()
        path = require_path(folder)
        self._require_free(path, replace)
        require_writable("folder", path)
        with publishing(path, replace=replace) as temporary:
            save_tensors(temporary / TENSORS, self.tensors)
            for name, content in self.files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(content)
            description = {
                "schema": SCHEMA,
                "digest": self.key.digest,
                **asdict(self.key),
                "model": self.model,
                "corpus": self.corpus,
                "parameters": self.parameters,
                "statistics": self.statistics,
                "run": self.run,
                "tensors_sha256": sha256_of_file(temporary / TENSORS),
                "files_sha256": {
                    name: sha256_of_file(temporary / name) for name in sorted(self.files)
                },
            }
            write_json(
                temporary / DESCRIPTION,
                {**description, "content_sha256": sha256_of_json(description)},
            )

    def _require_free(self, folder: Path, replace: bool) -> None:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        if not any((folder / name).is_file() for name in (DESCRIPTION, TENSORS)):
            raise ArtifactError(f"{folder} is there and no artifact: name another folder")
        if replace:
            return
        try:
            other = _digest(folder) != self.key.digest or Artifact.load(folder).key != self.key
        except ArtifactError as error:
            raise ArtifactError(
                f"{folder} holds a damaged artifact: name another folder, or save with replace=True"
            ) from error
        if other:
            raise ArtifactError(
                f"{folder} holds another artifact: name another folder, or save with replace=True"
            )

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read an artifact and verify every byte of it.

        Raises
        ------
        ArtifactError
            If it is missing, truncated, edited, or of another schema version.
        """
        folder = require_path(folder)
        content = _verified_description(folder)
        path = folder / TENSORS
        if not path.is_file() or sha256_of_file(path) != content["tensors_sha256"]:
            raise _damaged(path)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise _damaged(path) from error
        key = ArtifactKey(**{name: content[name] for name in ArtifactKey.__dataclass_fields__})
        names = "model", "corpus", "parameters", "statistics", "run"
        parts = {name: content[name] for name in names}
        files = {}
        for name, expected in content["files_sha256"].items():
            if not (folder / name).is_file() or sha256_of_file(folder / name) != expected:
                raise _damaged(folder / name)
            files[name] = (folder / name).read_bytes()
        return cls(key, **parts, tensors=tensors, files=files)

    def verify(self, key: ArtifactKey) -> None:
        """Refuse to serve for anything but what the artifact was calibrated for.

        Raises
        ------
        ArtifactError
            If the model, the tokenizer, the corpus or the method's configuration is another.
        """
        self.require_model(key.model_fingerprint)
        if key != self.key:
            raise ArtifactError(
                f"the artifact {self.key.digest} was calibrated with another configuration, "
                f"tokenizer or corpus than the one asked for ({key.digest}); calibrate again"
            )

    def require_method(self, name: str) -> None:
        """Raise `ArtifactError` where the method of this name is another one."""
        if self.key.method != name:
            raise ArtifactError(
                f"the artifact {self.key.digest} is one of {self.key.method}, not of {name}: use "
                "its own method, artifact.method"
            )

    def require_unedited(self) -> None:
        """Raise `ArtifactError` where what applying takes is not what it was at first."""
        if edited := differences(self._made, self._summaries()):
            more = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
            raise ArtifactError(
                f"the artifact {self.key.digest} was edited in memory, {edited[0]}{more}: load it "
                "again, or make another one with dataclasses.replace"
            )

    def require_settings(self, method: Method) -> None:
        """Raise `ArtifactError` where the method has other settings than it was calibrated with."""
        own, asked = self.method.config(), method.config()
        if different := [name for name in own if own[name] != asked[name]]:
            raise ArtifactError(
                f"the artifact {self.key.digest} was calibrated with "
                f"{', '.join(f'{name}={own[name]}' for name in different)}, not "
                f"{', '.join(f'{name}={asked[name]}' for name in different)}: use its own method, "
                "artifact.method, or calibrate again"
            )

    def require_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ArtifactError` where the tokenizer is another than that of the calibration."""
        if tokenizer_fingerprint(tokenizer) != self.key.tokenizer_fingerprint:
            raise ArtifactError(
                f"the artifact {self.key.digest} belongs to another tokenizer, which makes other "
                "tokens of a text or other text of tokens: give the one it was calibrated with, or "
                "calibrate again"
            )

    def require_model(self, fingerprint: str) -> None:
        """Raise `ArtifactError` where a model with this fingerprint is another one."""
        if fingerprint != self.key.model_fingerprint:
            raise ArtifactError(
                f"the artifact {self.key.digest} belongs to another model: calibrated on "
                f"{self.model['architecture']} with fingerprint {self.key.model_fingerprint[:12]}, "
                f"and this one's is {fingerprint[:12]}; calibrate this model"
            )


def _digest(folder: Path) -> str:
    """Return the digest in an artifact's description, of any schema version and yet unverified."""
    try:
        return str(json.loads((folder / DESCRIPTION).read_text("utf-8"))["digest"])
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise _damaged(folder) from error


def _verified_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        if not folder.exists():
            raise ArtifactError(
                f"{folder}: there is no artifact here; make it with calibrate.py, or in Python "
                "with trimtab.calibrate and Artifact.save"
            )
        if (folder / EXPORTED).is_file():
            raise ArtifactError(f"{folder} is an exported model: load it with trimtab.load_model")
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is a file: expected the folder of an artifact")
        raise _damaged(folder, f"it holds no {DESCRIPTION}")
    try:
        content = json.loads(path.read_text("utf-8"))
        expected = content.pop("content_sha256")
        actual = sha256_of_json(content)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _damaged(path) from error
    if content.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path}: schema version {content.get('schema')}, this version reads {SCHEMA}: "
            "calibrate again"
        )
    if actual != expected:
        raise _damaged(path)
    return dict(content)


def _damaged(path: Path, how: str = "truncated or edited since it was written") -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged: {how}; calibrate.py with the same settings and force=true makes it "
        "anew, and so does any calibration once its folder is removed"
    )
