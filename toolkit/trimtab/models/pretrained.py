"""Load a model and its tokenizer as transformers does, by name or from a folder."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.errors import ConfigError
from trimtab.progress import waiting

TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")


def short_name(name: str) -> str:
    """Return a folder-safe name: ``org/model`` as ``org--model``, a path as its last part."""
    path = Path(name).expanduser()
    last = path.resolve().name if path.is_dir() else name
    return re.sub(r"[^\w.-]+", "--", last)


def pretrained(
    name: str,
    revision: str | None,
    device_map: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model by its hub name or from a local folder.

    Raises
    ------
    ConfigError
        If there is none, or it is incomplete or damaged.
    """
    path = Path(name).expanduser()
    try:
        with waiting(f"Loading {name}"):
            place = str(path) if path.is_dir() else name
            return from_folder(place, revision, device_map, device, dtype)
    except SafetensorError as error:
        raise ConfigError(
            "model.name",
            name,
            f"a .safetensors file is incomplete or damaged, download it again ({error})",
        ) from error
    except (OSError, ValueError) as error:
        reason = _missing_file(path) or " ".join(str(error).split())
        raise ConfigError(
            "model.name", name, f"cannot be loaded as a causal language model: {reason}"
        ) from error


def _missing_file(folder: Path) -> str:
    """Say what the local folder of a model lacks; nothing where it is none, or lacks neither."""
    if not folder.is_dir():
        return ""
    if not (folder / "config.json").is_file():
        return "the folder has no config.json; expected a model and its tokenizer"
    if not any(found for pattern in TOKENIZER_FILES for found in folder.glob(pattern)):
        return "the folder has no tokenizer file, such as tokenizer.json: put the model's there"
    return ""


def from_folder(
    name: str,
    revision: str | None,
    device_map: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer as transformers does, onto a device or spread by a map."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, device_map=device_map
    )
    if device_map is None:
        nn.Module.to(model, device)
    return model, tokenizer
