"""Trimtab: training-free optimization of decoder-only language models, honestly measured.

The names below are the public interface; docs/python.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.adaptivocab import AdaptiVocab
    from trimtab.api import apply, calibrate, load, load_model
    from trimtab.artifact import Artifact
    from trimtab.config import (
        EnergyConfig,
        GenerationConfig,
        MeasureConfig,
        QualityConfig,
        ServingConfig,
        SpeedConfig,
    )
    from trimtab.corpus import Corpus
    from trimtab.errors import ArtifactError, ConfigError, MisfitError, TrimtabError
    from trimtab.evaluation.run import measure
    from trimtab.generation import Completion, Engine, Sampling
    from trimtab.larosa import LaRoSA
    from trimtab.optimized import Optimized
    from trimtab.vattention import VAttention, VirtualCache, decode_kernel

__version__ = "0.1.0"

__all__ = [
    "AdaptiVocab",
    "Artifact",
    "ArtifactError",
    "Completion",
    "ConfigError",
    "Corpus",
    "EnergyConfig",
    "Engine",
    "GenerationConfig",
    "LaRoSA",
    "MeasureConfig",
    "MisfitError",
    "Optimized",
    "QualityConfig",
    "Sampling",
    "ServingConfig",
    "SpeedConfig",
    "TrimtabError",
    "VAttention",
    "VirtualCache",
    "apply",
    "calibrate",
    "decode_kernel",
    "load",
    "load_model",
    "measure",
]

# Imported on first use, so that what needs neither PyTorch nor transformers starts at once.
_PLACES = {
    "AdaptiVocab": "adaptivocab",
    "Artifact": "artifact",
    "ArtifactError": "errors",
    "Completion": "generation",
    "ConfigError": "errors",
    "Corpus": "corpus",
    "EnergyConfig": "config",
    "Engine": "generation",
    "GenerationConfig": "config",
    "LaRoSA": "larosa",
    "MeasureConfig": "config",
    "MisfitError": "errors",
    "Optimized": "optimized",
    "QualityConfig": "config",
    "Sampling": "generation",
    "ServingConfig": "config",
    "SpeedConfig": "config",
    "TrimtabError": "errors",
    "VAttention": "vattention",
    "VirtualCache": "vattention",
    "apply": "api",
    "calibrate": "api",
    "decode_kernel": "vattention",
    "load": "api",
    "load_model": "api",
    "measure": "evaluation.run",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
