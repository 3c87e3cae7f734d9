"""Load a model and its tokenizer as transformers does, by name or from a folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from trimtab.arguments import require_tokenizer
from trimtab.errors import ConfigError, TrimtabError
from trimtab.models.load_errors import why_not_loaded
from trimtab.models.misfits import (
    OTHER_SHAPES,
    other_shape,
    require_unpaged_attention,
    require_window,
)
from trimtab.models.state import zero_matrices
from trimtab.models.stored import FLOATS, stored_tensors
from trimtab.progress import waiting
from trimtab.settings import path_of

ADAPTER = "adapter_config.json"
OLD_BUFFERS = ("attn.masked_bias",)  # a constant in checkpoints of GPT-2 that are some years old
REPORTING = "modeling_utils", "tokenization_utils_tokenizers"  # of transformers' modules
REPORTS = "LOAD REPORT", "This checkpoint seem corrupted", "Could not extract SentencePiece model"
WRAPPED = re.compile(r"(?<![^.])(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.)+")


def short_name(name: str) -> str:
    """Return a folder-safe name: ``org/model`` as ``org--model``, a path as its last part."""
    path = path_of(name)
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
    path = path_of(name)
    try:  # transformers raises many unrelated types
        with waiting(f"Loading {name}"):
            place = str(path) if path.is_dir() else name
            return from_folder(place, revision, device_map, device, dtype)
    except Exception as error:
        raise ConfigError("model.name", name, why_not_loaded(path, error)) from error


def from_folder(
    name: str,
    revision: str | None,
    device_map: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer as transformers does, onto a device or spread by a map."""
    with _without_reports():
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    require_tokenizer(tokenizer)
    model = complete(name, revision=revision, dtype=dtype, device_map=device_map)
    if device_map is None:
        nn.Module.to(model, device)
    return model, tokenizer


def complete(folder: str | Path, **options: Any) -> PreTrainedModel:
    """Load a model as transformers does, every tensor of it and nothing else.

    What transformers itself sets aside (a tied head, buffers that are computed) may be there or
    not.

    Raises
    ------
    TrimtabError
        If the checkpoint and the model that its config describes differ in a tensor, a weight is
        quantized and nothing says how, a matrix is all zeros, two files hold a tensor differently,
        its attention runs no forward pass, or there is an adapter that is not loaded.
    """
    load: Any = AutoModelForCausalLM.from_pretrained
    model: PreTrainedModel
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_reports():
        model, found = load(
            folder, return_dict=True, trust_remote_code=False, **reporting, **options
        )
    if Path(folder, GENERATION_CONFIG_NAME).is_file():
        GenerationConfig.from_pretrained(folder)  # a damaged one is set aside without a word
    if (Path(folder) / ADAPTER).is_file() and not getattr(model, "peft_config", None):
        raise TrimtabError(
            f"it has an adapter ({ADAPTER}), which transformers loads with the package peft alone: "
            "merge it into the weights"
        )
    require_window(model)
    require_unpaged_attention(model)
    unread = _unread(model, folder, options.get("revision"))
    asked = getattr(model.config, "quantization_config", None)
    if unread and asked is not None:
        raise TrimtabError(
            f"its weights are quantized by quant_method={asked['quant_method']!r}, which "
            f"transformers does not know ({_some(unread)}): choose a checkpoint that is not "
            "quantized, or by another method"
        )
    basis = "no scales beside them" if _dequantized(model) else "its config no quantization_config"
    mismatched = [other_shape(*mismatched) for mismatched in found["mismatched_keys"]]
    differences = {
        "lacks": found["missing_keys"],
        OTHER_SHAPES: mismatched,
        "has tensors that its config has no place for:": [
            name for name in found["unexpected_keys"] if not name.endswith(OLD_BUFFERS)
        ],
        "has weights that are no float16, bfloat16, float32 or float64, and "
        f"{basis} to read them by:": unread,
        "has matrices that hold nothing but zeros:": zero_matrices(model),
    }
    if prefix := _wrapped(found["missing_keys"], found["unexpected_keys"]):
        raise TrimtabError(
            f"the checkpoint's tensors are named with {prefix}, of a model saved within "
            "a wrapper (DistributedDataParallel, torch.compile, PEFT, a trainer's module): strip "
            "it from their names and save them again"
        )
    if said := [f"{what} {_some(names)}" for what, names in differences.items() if names]:
        raise TrimtabError(
            f"the checkpoint {'; it '.join(said)}: download it again, and its config.json"
        )
    return model


def _wrapped(missing: Collection[str], unexpected: Collection[str]) -> str:
    """Return the prefix without which tensors of unknown names would be some that are missing."""
    for name in sorted(unexpected):
        found, plain = WRAPPED.search(name), WRAPPED.sub("", name)
        if found and any(f".{one}".endswith(f".{plain}") for one in missing):
            return found[0]
    first = next(iter(unexpected), "")
    prefixes = [first.removesuffix(one) for one in missing if first.endswith(f".{one}")]
    whole = (one for one in prefixes if all(name.startswith(one) for name in unexpected))
    return next(whole, "")


def _unread(model: PreTrainedModel, folder: str | Path, revision: str | None) -> list[str]:
    """Return the weights that need a scale to be read, and were read without one."""
    if getattr(model, "is_quantized", False):  # transformers has seen to their scales
        return []
    types = {name: one.dtype for name, one in stored_tensors(folder, revision).items()}
    weights = [name for name, _ in model.named_parameters()]
    return [
        f"{stored} in {dtype}"
        for stored, dtype in types.items()
        if dtype not in FLOATS
        and any(f".{one}".endswith(f".{stored}") or stored.endswith(f".{one}") for one in weights)
        and not (_dequantized(model) and any(one.startswith(f"{stored}_") for one in types))
    ]


def _dequantized(model: PreTrainedModel) -> bool:
    """Return whether a quantizer of transformers has run, and left plain weights."""
    return getattr(model, "is_quantized", None) is False  # without a quantizer it is not there


@contextmanager
def _without_reports() -> Iterator[None]:
    """Have transformers not print at length what is said here in one line."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in REPORTING]
    for logger in loggers:
        logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return not any(report in record.getMessage() for report in REPORTS)


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
