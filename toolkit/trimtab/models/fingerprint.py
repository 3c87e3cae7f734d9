"""What identifies a model, by what it computes, and a tokenizer, by what it makes of text."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.contents import digests
from trimtab.models.derived import unlike_config
from trimtab.models.edits import edits
from trimtab.models.state import require_in_memory
from trimtab.models.tensors import firsts, shared
from trimtab.progress import track

QUIET_BELOW = 2**30  # bytes that are hashed in well under two seconds
# Settings of a config that change no prediction; what drops out is off in evaluation mode.
WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "initializer_range", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "transformers_version",
    "use_cache",
}  # fmt: skip
PROBE = (
    "The cat's naïve café — 12 345,67 €\n\n\tif x_1 != 0xFF:  # ok\r\n日本語 Привет العربية हिन्दी "
    "\U0001f469\u200d\U0001f467 <s></s><|endoftext|> https://a.b/c?d=e&f I'LL don't  SpaceX \n "
)


@runtime_checkable
class ComputesByMore(Protocol):
    """A module of ours that computes by more than its tensors and the model's config."""

    def beside_tensors(self) -> Any:
        """Return the rest of what it computes by, as JSON values."""


@torch.inference_mode()
def fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's class, its config, and all there is to say of its tensors.

    That is the name, dtype and shape of each, and its entries, by `trimtab.contents.digests`. Tied
    tensors count once, under the first of their names; to which one they are tied counts, too, but
    for head and embedding. The dtype is part of it: an artifact that was calibrated in float32
    belongs to the float32 model. Settings of the config count where they may change what the model
    predicts, and so do tensors and modules that the model makes from it, where they have been
    changed since. What a sparse model drops counts, too.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    MisfitError
        If part of the model is not in memory.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    digest.update(json.dumps(_effective(model.config), sort_keys=True, default=str).encode())
    require_in_memory(model)
    if more := _beside_tensors(model):
        digest.update(json.dumps(more, sort_keys=True).encode())
    if edited := {name: one.found for name, one in edits(model).items()}:
        digest.update(json.dumps(edited, sort_keys=True).encode())
    state = dict(sorted({**model.state_dict(), **unlike_config(model)}.items()))
    if ties := shared(model, state):
        digest.update(json.dumps(ties, sort_keys=True).encode())
    once = [(name, state[name]) for name, first in firsts(state).items() if name == first]
    entries = digests([tensor for _, tensor in once])
    if sum(tensor.nbytes for _, tensor in once) >= QUIET_BELOW:
        entries = track(entries, "Fingerprinting weights", len(once))
    for (name, tensor), own in zip(once, entries, strict=True):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(own)
    return digest.hexdigest()


def _beside_tensors(model: nn.Module) -> dict[str, Any]:
    """Return what modules compute by that is in no tensor, by their names."""
    return {
        name: module.beside_tensors()
        for name, module in model.named_modules()
        if isinstance(module, ComputesByMore)
    }


def _effective(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config sets that may have an effect, without what is off or empty."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in WITHOUT_EFFECT and "drop" not in name and value
    }


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of all that decides which tokens a text becomes, and which text they do.

    That is the vocabulary, what is made of a text of all kinds, and of a fast tokenizer every
    merge, normalizer, pre-tokenizer, post-processor and decoder. How it pads and truncates is the
    state of its last call and no part of it.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    ids = tokenizer(PROBE, verbose=False)["input_ids"]
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id
    parts = sorted(tokenizer.get_vocab().items()), ends, ids, tokenizer.decode(ids)
    found = json.dumps([*parts, _pipeline(tokenizer)])
    return hashlib.sha256(found.encode()).hexdigest()


def _pipeline(tokenizer: Any) -> dict[str, Any]:
    """Return a fast tokenizer as tokenizer.json holds it, but for the state of its last call."""
    if not tokenizer.is_fast:
        return {}
    try:
        whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception:  # it has parts in Python, which no file holds
        return {}
    return {name: part for name, part in whole.items() if name not in ("padding", "truncation")}
