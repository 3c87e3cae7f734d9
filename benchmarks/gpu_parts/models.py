"""Models with random weights, one at a time, and their decode plans."""

from __future__ import annotations

import gc
from functools import partial

import torch
from kv_parts.setting import lacking
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gpu_parts.unit import Options
from trimtab.errors import TrimtabError
from trimtab.evaluation.memory import parameter_bytes
from trimtab.generation.attention import NAME
from trimtab.generation.plan import Observed, decode_plan
from trimtab.generation.steps import ExtendStep
from trimtab.models.adapter import adapter_for, head_shape
from trimtab.models.random import random_model
from trimtab.models.shapes import shape_of
from trimtab.vattention.attention import using_attention
from trimtab_kernels.decode_step import DecodePlan

DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
PROBE = 2  # tokens of the pass that a plan is made from


class Models:
    """The model that was last asked for: there may not be room for two."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._held: tuple[str, PreTrainedModel] | None = None

    def get(self, name: str) -> PreTrainedModel:
        """Return a model by the name of its shape, the weights of each site side by side.

        Raises
        ------
        TrimtabError
            If it does not fit, with the memory that it needs.
        """
        if self._held is None or self._held[0] != name:
            self.release()
            require_room(_weight_bytes(name), self._options, f"leave out --model {name}")
            device = torch.device(self._options.device)
            dtype = DTYPES[device.type]
            with torch.inference_mode(False):
                model, _ = random_model(name, self._options.seed, device, dtype)
                model.eval().requires_grad_(False)
                lay_side_by_side(model)
            self._held = name, model
        return self._held[1]

    def release(self) -> None:
        """Give up the model."""
        self._held = None
        gc.collect()


def require_room(nbytes: int, options: Options, remedy: str) -> None:
    """Refuse what does not fit.

    Raises
    ------
    TrimtabError
        With the memory needed, and the remedy.
    """
    if options.device == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps is free for it
    if reason := lacking(nbytes, options, remedy):
        raise TrimtabError(reason)


def _weight_bytes(name: str) -> int:
    with torch.device("meta"):
        config = AutoConfig.for_model(**shape_of(name))
        shape = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return parameter_bytes(shape)


@torch.no_grad()
def lay_side_by_side(model: PreTrainedModel) -> None:
    """Have the weights of linear layers that read the same input lie one after another in memory.

    Those with an order of inputs before outputs stay where they are.
    """
    adapter = adapter_for(model)
    for layer in adapter.decoder_layers(model):
        for site in adapter.sites:
            readers = [layer.get_submodule(name) for name in site.readers]
            if not all(type(one) is nn.Linear for one in readers):
                continue
            weights = [one.weight for one in readers]
            parts = torch.cat(weights).split([len(one) for one in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.data = part


def plan_of(model: PreTrainedModel, max_len: int) -> DecodePlan:
    """Return the decode plan of a model, with rotations of `max_len` positions."""
    heads, layers = head_shape(model.config), model.config.num_hidden_layers
    shape = 1, PROBE, heads.kv_heads, heads.head_dim
    make = partial(torch.zeros, shape, dtype=model.dtype, device=model.device)
    keys, values = ([make() for _ in range(layers)] for _ in range(2))
    observed = Observed(ExtendStep(keys, values, 0, 0, PROBE, prompt=False))
    tokens = torch.arange(PROBE, device=model.device)[None]
    no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device)
    with torch.inference_mode(), using_attention(model, NAME), observed.watching(model):
        model(tokens, position_ids=tokens, attention_mask=no_mask, use_cache=False, step=observed)
        return decode_plan(model, observed, max_len)


def random_cache(
    model: PreTrainedModel, rows: int, max_len: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return keys and values [rows, max_len, kv_heads, head_dim] by layer, of random numbers."""
    heads, layers = head_shape(model.config), model.config.num_hidden_layers
    shape = rows, max_len, heads.kv_heads, heads.head_dim
    make = partial(torch.randn, shape, dtype=model.dtype, device=model.device)
    keys, values = ([make() for _ in range(layers)] for _ in range(2))
    return keys, values
