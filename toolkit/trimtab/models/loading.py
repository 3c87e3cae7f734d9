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

from trimtab.config import DType, EmbeddedModel, HubModel, ModelConfig, RandomModel
from trimtab.errors import ConfigError
from trimtab.models.embedded import embedded_folder
from trimtab.models.fingerprint import fingerprint
from trimtab.models.random import random_model
from trimtab.progress import say, waiting

TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")

SOURCES = {kind.__name__: kind for kind in (EmbeddedModel, HubModel, RandomModel)}


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


def load_model(config: ModelConfig) -> LoadedModel:
    """Load the model that `config` names.

    Raises
    ------
    ConfigError
        If there is no such model, device or shape.
    TrimtabError
        If the embedded model's package is not installed.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    logging.disable_progress_bar()  # ours reports instead
    if isinstance(config, RandomModel):
        with waiting(f"Drawing random weights for {config.config}"):
            model, tokenizer = random_model(config.config, config.seed, device, dtype)
        name = config.config
    elif isinstance(config, HubModel):
        model, tokenizer = _pretrained(config, device, dtype)
        name = short_name(config.name)
    elif isinstance(config, EmbeddedModel):
        model, tokenizer = _from_folder(str(embedded_folder()), None, None, device, dtype)
        name = "smollm2-135m"
    else:
        raise TypeError(f"no loader for {type(config).__name__}")
    model.eval().requires_grad_(False)
    say(
        f"Model: {name} ({type(model).__name__}, {model.num_parameters() / 1e6:.4g} M "
        f"parameters, {str(dtype).removeprefix('torch.')}, {device})"
    )
    source = {
        **asdict(config),
        "kind": type(config).__name__,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if isinstance(config, HubModel) and (path := Path(config.name).expanduser()).is_dir():
        source["name"] = str(path.resolve())
    random_weights = isinstance(config, RandomModel)
    return LoadedModel(model, tokenizer, name, fingerprint(model), random_weights, source)


def load_source(source: Mapping[str, Any]) -> LoadedModel:
    """Load a model again from what `LoadedModel.source` says of it, on the CPU.

    Raises
    ------
    ConfigError
        If it is no longer there.
    """
    settings = {**source, "device": "cpu", "dtype": DType(source["dtype"])}
    kind = SOURCES[settings.pop("kind")]
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


def _pretrained(
    config: HubModel, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = Path(config.name).expanduser()
    name = str(path) if path.is_dir() else config.name
    try:
        with waiting(f"Loading {config.name}"):
            return _from_folder(name, config.revision, config.device_map, device, dtype)
    except SafetensorError as error:
        raise ConfigError(
            "model.name",
            config.name,
            f"a .safetensors file is incomplete or damaged, download it again ({error})",
        ) from error
    except (OSError, ValueError) as error:
        reason = _missing_file(path) or " ".join(str(error).split())
        raise ConfigError(
            "model.name", config.name, f"cannot be loaded as a causal language model: {reason}"
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


def _from_folder(
    name: str,
    revision: str | None,
    device_map: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, device_map=device_map
    )
    if device_map is None:
        nn.Module.to(model, device)
    return model, tokenizer
