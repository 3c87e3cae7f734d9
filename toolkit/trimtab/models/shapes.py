"""The shapes of models with random weights, as shapes.yaml has them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from trimtab.errors import ConfigError


def shapes() -> dict[str, dict[str, Any]]:
    """Return the shipped shapes by name, as arguments of ``AutoConfig.for_model``."""
    text = files("trimtab.models").joinpath("shapes.yaml").read_text("utf-8")
    loaded = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(loaded, dict)
    return {str(name): shape for name, shape in loaded.items()}


def shape_of(name: str) -> dict[str, Any]:
    """Return the shape of this name.

    Raises
    ------
    ConfigError
        If none has it.
    """
    known = shapes()
    if name not in known:
        raise ConfigError("model.config", name, f"expected one of {', '.join(known)}")
    return known[name]
