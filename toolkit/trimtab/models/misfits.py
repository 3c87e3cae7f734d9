"""Where a checkpoint's config contradicts itself, or the tensors beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import CONFIG_NAME

from trimtab.errors import MisfitError, TrimtabError
from trimtab.models.stored import stored_tensors

SLIDING = "sliding_attention"
PAGED, FLEX = "paged|", "flex_attention"
OTHER_SHAPES = "has tensors of other shapes than its config says:"


def require_window(model: PreTrainedModel) -> None:
    """Refuse sliding layers without a window, or with one of no token."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        windows = [] if window is None else [window]
    else:
        layers = getattr(config, "per_layer_config", None) or [config] * len(kinds)
        sliding = (layer for kind, layer in zip(kinds, layers, strict=False) if kind == SLIDING)
        windows = [getattr(layer, "sliding_window", None) for layer in sliding]
    if any(one is None or one < 1 for one in windows):
        told = f"{CONFIG_NAME} has sliding_window={window}: expected at least 1 token"
        if kinds:
            told += f", as its layer_types hold {SLIDING}"
        raise TrimtabError(f"{told}: correct it or download it again")


def require_unpaged_attention(model: PreTrainedModel) -> None:
    """Refuse an attention that needs the pages of transformers' continuous batching."""
    if (name := model.config._attn_implementation or "").startswith(PAGED):
        raise TrimtabError(
            f"{CONFIG_NAME} has attn_implementation={name}, which only transformers' continuous "
            f"batching can run: make it {name.removeprefix(PAGED)}"
        )


def require_gradients(model: PreTrainedModel) -> None:
    """Refuse an attention through which there are no gradients."""
    if model.device.type == "cpu" and model.config._attn_implementation == FLEX:
        raise MisfitError(
            f"attn_implementation={FLEX} has no gradients on a CPU, which the calibration needs: "
            "load the model with sdpa or eager"
        )


def other_shapes(folder: Path) -> list[str]:
    """Say which tensors of a local folder have other shapes than its config gives them."""
    if not folder.is_dir():
        return []
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    stored = {name: tensor.shape for name, tensor in stored_tensors(folder, None).items()}
    return [
        other_shape(name, stored[name], expected.shape)
        for name, expected in model.state_dict().items()
        if stored.get(name, expected.shape) != expected.shape
    ]


def other_shape(name: str, stored: torch.Size, expected: torch.Size) -> str:
    """Say which shape a tensor has, and which the config gives it."""
    return f"{name} of shape {[*stored]} for {[*expected]}"
