"""What generates: transformers' own loop, and our engine, measured alike."""

from trimtab.evaluation.generators.engine import EngineGenerator
from trimtab.evaluation.generators.generator import Generator
from trimtab.evaluation.generators.transformers import TransformersGenerator

__all__ = ["EngineGenerator", "Generator", "TransformersGenerator"]
