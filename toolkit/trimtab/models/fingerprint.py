"""What identifies a model: its architecture and every bit of its weights."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel

from trimtab.progress import track

QUIET_BELOW = 2**30  # bytes that are hashed in well under two seconds


@torch.inference_mode()
def fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's class, and the name, dtype, shape and bytes of each tensor.

    Tied tensors count once, under the first of their names. The dtype is part of it: an
    artifact that was calibrated in float32 belongs to the float32 model.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    seen: set[int] = set()
    state = sorted(model.state_dict().items())
    total = sum(tensor.nbytes for _, tensor in state)
    items = state if total < QUIET_BELOW else track(state, "Fingerprinting weights", len(state))
    for name, tensor in items:
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.contiguous().cpu().view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()
