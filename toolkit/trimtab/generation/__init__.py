"""Text generation on a virtual KV cache: many sequences of different lengths at a time."""

from trimtab.generation.engine import Engine
from trimtab.generation.request import Completion, Finish
from trimtab.generation.sampling import Sampling
from trimtab.generation.stats import EngineStats

__all__ = ["Completion", "Engine", "EngineStats", "Finish", "Sampling"]
