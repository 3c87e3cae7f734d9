"""Load a model and its tokenizer from wherever the configuration says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from trimtab.errors import ConfigError
from trimtab.models.fingerprint import fingerprint
from trimtab.models.sources import DType, HubModel, ModelSource
from trimtab.progress import say, waiting
from trimtab.registry import targets

TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")


@dataclass
class LoadedModel:
    """A model ready to run, in evaluation mode and without gradients.

    Attributes
    ----------
    model, tokenizer
        As transformers loads them.
    name : str
        Short name, usable as a folder's.
    fingerprint : str
        See `trimtab.models.fingerprint`.
    random_weights : bool
        True where the weights mean nothing, so that no quality may be reported.
    source : dict
        What `load_source` loads the same model from, JSON values only.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    random_weights: bool
    source: dict[str, Any]


def load_model(source: ModelSource) -> LoadedModel:
    """Load the model that `source` names.

    Raises
    ------
    ConfigError
        If there is no such model, device or shape.
    TrimtabError
        If the embedded model's package is not installed.
    """
    device = resolve_device(source.device)
    dtype = resolve_dtype(source.dtype, device)
    logging.disable_progress_bar()  # ours reports instead
    name, model, tokenizer = source.load(device, dtype)
    model.eval().requires_grad_(False)
    say(
        f"Model: {name} ({type(model).__name__}, {model.num_parameters() / 1e6:.4g} M "
        f"parameters, {str(dtype).removeprefix('torch.')}, {device})"
    )
    description = {
        **asdict(source),
        "kind": type(source).__name__,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if isinstance(source, HubModel) and (path := Path(source.name).expanduser()).is_dir():
        description["name"] = str(path.resolve())
    return LoadedModel(
        model, tokenizer, name, fingerprint(model), source.random_weights, description
    )


def load_source(source: Mapping[str, Any]) -> LoadedModel:
    """Load a model again from what `LoadedModel.source` says of it, on the CPU.

    Raises
    ------
    ConfigError
        If it is no longer there.
    """
    settings = {**source, "device": "cpu", "dtype": DType(source["dtype"])}
    kinds = {kind.__name__: kind for kind in targets("model").values()}
    kind = kinds[settings.pop("kind")]
    if "device_map" in settings:
        settings["device_map"] = None
    return load_model(kind(**settings))


def resolve_device(name: str) -> torch.device:
    """Return the device `name` stands for; `auto` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0) if re.fullmatch(r"cuda(:\d+)?", name) else None
        if index is None or index >= torch.cuda.device_count():
            raise ConfigError(
                "model.device", name, f"this machine has {torch.cuda.device_count()} CUDA devices"
            )
    return torch.device(name)


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """Return the torch dtype; `auto` is float32 on a CPU and bfloat16 on a GPU."""
    if dtype is DType.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    resolved = getattr(torch, dtype.value)
    assert isinstance(resolved, torch.dtype)
    return resolved


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
