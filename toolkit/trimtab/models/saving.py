"""Save what a model says of itself, in a folder that holds nothing else."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from trimtab.errors import MisfitError, TrimtabError
from trimtab.files import is_vacant
from trimtab.models.derived import unlike_config
from trimtab.models.edits import edits
from trimtab.models.tensors import tensors_unlike_config


def require_vacant(folder: Path) -> None:
    """Raise `TrimtabError` where a folder that is to be made holds something, or is a file."""
    if not is_vacant(folder):
        raise TrimtabError(f"{folder} exists and is not an empty folder: name another one")


def require_as_config(model: PreTrainedModel, free: Collection[str] = ()) -> None:
    """Refuse a model that would not be loaded as it is saved.

    Parameters
    ----------
    model : PreTrainedModel
    free : collection of str
        Names of tensors that are loaded whatever the config says of them.

    Raises
    ------
    MisfitError
    """
    if changed := sorted(unlike_config(model)):
        raise MisfitError(
            f"{changed[0]} is not what the model's config makes of it, and no saved model holds "
            "it: say in the config what it should be (such as rope_parameters), and load the model "
            "with that"
        )
    for name, edit in edits(model).items():
        raise MisfitError(
            f"{name}: {edit.found}, and the model's config makes it {edit.expected}, as it would "
            "be when the saved model is loaded: say in the config what it should be (such as "
            "hidden_act), and load the model with that; what no config says cannot be exported"
        )
    for name, edit in tensors_unlike_config(model, free).items():
        raise MisfitError(
            f"{name}: {edit.found}, and the model's config makes it {edit.expected}, as it would "
            "be when the saved model is loaded: say in the config what it should be (such as "
            "attention_bias), make masks and parametrizations part of the weight (such as by "
            "torch.nn.utils.prune.remove), or give each module a tensor of its own"
        )


@contextmanager
def savable(config: PreTrainedConfig) -> Iterator[None]:
    """Have a configuration not ask for attention weights, where transformers would not save it.

    It loads one that does with any attention, and saves it with the eager one alone.
    """
    asked = config.output_attentions
    if config._attn_implementation != "eager":
        config._output_attentions = False  # what its property sets, which refuses to set it back
    try:
        yield
    finally:
        config._output_attentions = asked


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Save the configuration of a model and, where there is one, that of its generation.

    Raises
    ------
    TrimtabError
        If transformers refuses to.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    try:
        with savable(config):
            config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
    except (ValueError, StrictDataclassError) as error:
        raise TrimtabError(
            f"transformers cannot save the model's configuration: {' '.join(str(error).split())}"
        ) from error
