"""What an error of transformers says of a checkpoint, in one line."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
    is_protobuf_available,
    is_sentencepiece_available,
    logging,
)

from trimtab.models.misfits import OTHER_SHAPES, other_shapes

TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
# What transformers reads names and values from; other files of a folder may hold lists.
OBJECTS = (
    CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME,
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json",
)  # fmt: skip
TEXT_FILES = "*.jinja", "additional_chat_templates/*.jinja", "vocab.txt", "merges.txt"
INDICES = SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME
# What Python says of a value that no code expected, and nothing of where it comes from.
BARE = ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError


def why_not_loaded(folder: Path, error: Exception, *, tokenizer: bool = True) -> str:
    """Say in one line what `error`, of any type that transformers raises, says of a checkpoint.

    Parameters
    ----------
    tokenizer : bool
        Whether a tokenizer is to be loaded from the folder too.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError) and len(said.split()) == 1:  # a name, and no sentence
        said = f"{said} is unknown, or missing"
    if isinstance(error, SafetensorError):
        return f"a .safetensors file is incomplete or damaged, download it again ({said})"
    if isinstance(error, UnpicklingError | EOFError) or "PytorchStreamReader" in said:
        return (
            "a .bin file is damaged, or holds more than tensors, which is not safe to load: "
            "download it again, or the model's .safetensors files"
        )
    if "trust_remote_code" in said:
        return (
            "its architecture is code of the checkpoint's own, which is not run here: choose a "
            "model that transformers has the architecture of"
        )
    missing = _missing_file(folder, tokenizer=tokenizer)
    reason = missing or _unread_tokenizer(folder, said) or _damaged_file(folder)
    reason = reason or unusable_generation_config(folder)
    if not reason and isinstance(error, (*BARE, ValueError)):
        reason = _nameless(folder)
    if not reason and isinstance(error, BARE):
        reason = _unusable_value(folder) or _other_shapes(folder)
    if not reason and isinstance(error, ImportError):
        reason = f"{said}; install what is missing, or choose a checkpoint that does without"
    reason = reason or said
    return f"cannot be loaded as a causal language model: {reason}"


def _missing_file(folder: Path, *, tokenizer: bool) -> str:
    """Say what the local folder of a model lacks; nothing where it is none, or lacks neither."""
    if not folder.is_dir():
        return ""
    if not (folder / "config.json").is_file():
        expected = "a model and its tokenizer" if tokenizer else "a model"
        return f"the folder has no config.json; expected {expected}"
    if tokenizer and not any(chain.from_iterable(map(folder.glob, TOKENIZER_FILES))):
        return "the folder has no tokenizer file, such as tokenizer.json: put the model's there"
    return ""


def _unread_tokenizer(folder: Path, said: str) -> str:
    """Say which packages read a SentencePiece model, where they lack; nothing where they do not.

    Without them transformers takes it for a file of tiktoken, and asks for that.
    """
    if "tiktoken" not in said and "sentencepiece" not in said.lower():
        return ""
    here = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    if not (missing := [name for name, installed in here.items() if not installed]):
        return ""
    name = next((path.name for path in sorted(folder.glob("*.model"))), "tokenizer.model")
    return (
        f"its tokenizer is {name}, which is read by packages that are not installed: pip install "
        f"{' '.join(missing)}, or put the model's tokenizer.json beside it"
    )


def _damaged_file(folder: Path) -> str:
    """Say which JSON or text file of a local folder of a model is none; nothing where all are."""
    for path in sorted(chain.from_iterable(map(folder.glob, TEXT_FILES))):
        try:
            path.read_text("utf-8")
        except ValueError:
            name = path.relative_to(folder)
            return f"{name} is no text in UTF-8: write it in UTF-8, or download it again"
    return next(filter(None, map(_damaged_json, sorted(folder.glob("*.json")))), "")


def _damaged_json(path: Path) -> str:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        return f"{path.name} is incomplete or damaged, download it again"
    if path.name in OBJECTS and not isinstance(content, dict):
        return f"{path.name} holds no JSON object, download it again"
    if path.name in INDICES and not _is_index(content):
        return f"{path.name} has no weight_map from tensors to files, download it again"
    return ""


def _is_index(content: dict[str, Any]) -> bool:
    files = content.get("weight_map")
    if not files or not isinstance(files, dict):
        return False
    return all(isinstance(file, str) for file in files.values())


def _nameless(folder: Path) -> str:
    """Say which .bin file of a local folder holds no tensors by their names, if any does."""
    for path in sorted(folder.glob("pytorch_model*.bin")):
        try:
            content = torch.load(
                path, map_location="meta", weights_only=True, mmap=is_zipfile(path)
            )
        except Exception:  # it is not this file that has been read, or there would be its error
            continue
        values = [*content.values()] if isinstance(content, dict) else [content]
        if others := [one for one in values if not isinstance(one, torch.Tensor)]:
            return (
                f"{path.name} holds a {type(others[0]).__name__}, expected tensors by their names: "
                "download it again"
            )
    return ""


def _unusable_value(folder: Path) -> str:
    """Say which values of a local folder's config no model can be built with, if any."""
    if not folder.is_dir():
        return ""
    config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # every model that is built may be warned of
    try:
        if not (said := _not_built(config)):
            return ""
        alone = ({key: one for key, one in config.items() if key != name} for name in config)
        guilty = [name for name, rest in zip(config, alone, strict=True) if not _not_built(rest)]
    finally:
        logging.set_verbosity(verbosity)
    named = " or ".join(f"{name}={config[name]!r:.60}" for name in guilty)
    what = f"a value that transformers cannot use{named and f', {named}'}"
    return f"{CONFIG_NAME} has {what} ({said}): correct it or download it again"


def _other_shapes(folder: Path) -> str:
    """Say which tensors of a local folder have other shapes than its config gives them, if any."""
    if not (found := other_shapes(folder)):
        return ""
    told = ", ".join(found)
    return f"the checkpoint {OTHER_SHAPES} {told}: download it again, and its config.json"


def _not_built(config: dict[str, Any]) -> str:
    """Return what transformers says where it cannot build a model, without memory for it."""
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(**config)
            AutoModelForCausalLM.from_config(made, trust_remote_code=False)
    except Exception as error:  # a value of another type fails in any way
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def unusable_generation_config(folder: Path) -> str:
    """Say what is wrong with a local folder's generation config; nothing where it can be read."""
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return ""
    if damaged := _damaged_json(path):
        return damaged
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a value of another type fails in any way
        said = " ".join(str(error).split())
        return f"{GENERATION_CONFIG_NAME} asks for what cannot be: {said} Correct or remove it"
    return ""
