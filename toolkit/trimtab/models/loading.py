"""Load a model and its tokenizer from wherever the configuration says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trimtab.errors import ConfigError
from trimtab.models.facts import require_known_tokens
from trimtab.models.fingerprint import fingerprint
from trimtab.models.sources import DType, HubModel, ModelSource
from trimtab.progress import say
from trimtab.registry import targets
from trimtab.settings import path_of

DEVICES = "expected auto, cpu, cuda or cuda:N"


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
    MisfitError
        If the tokenizer has tokens that the model does not.
    TrimtabError
        If the embedded model's package is not installed.
    """
    device = resolve_device(source.device)
    dtype = resolve_dtype(source.dtype, device)
    logging.disable_progress_bar()  # ours reports instead
    name, model, tokenizer = source.load(device, dtype)
    require_known_tokens(model, tokenizer)
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
    if isinstance(source, HubModel) and (path := path_of(source.name)).is_dir():
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


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device `name` stands for; `auto` is the GPU where there is one.

    Raises
    ------
    ConfigError
        If this machine has no such device, or there is none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if found is None:
        raise ConfigError("model.device", name, DEVICES)
    if found[0] != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise ConfigError(
            "model.device", name, f"this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device(found[0])


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """Return the torch dtype; `auto` is float32 on a CPU and bfloat16 on a GPU."""
    if dtype is DType.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    resolved = getattr(torch, dtype.value)
    assert isinstance(resolved, torch.dtype)
    return resolved
