"""Text generation on a virtual KV cache: many sequences of different lengths at a time."""

from toolkit.generation.drafts import Drafts
from toolkit.generation.engine import Engine
from toolkit.generation.request import Completion, Finish
from toolkit.generation.sampling import Sampling
from toolkit.generation.stats import EngineStats

__all__ = ["Completion", "Drafts", "Engine", "EngineStats", "Finish", "Sampling"]
