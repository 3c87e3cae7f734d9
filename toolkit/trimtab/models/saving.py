"""Save what a model says of itself, in a folder that holds nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedModel

from trimtab.errors import TrimtabError
from trimtab.files import is_vacant


def require_vacant(folder: Path) -> None:
    """Raise `TrimtabError` where a folder that is to be made holds something, or is a file."""
    if not is_vacant(folder):
        raise TrimtabError(f"{folder} exists and is not an empty folder: name another one")


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
        config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
    except ValueError as error:
        raise TrimtabError(
            f"transformers cannot save the model's configuration: {' '.join(str(error).split())}"
        ) from error
