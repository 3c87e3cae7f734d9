"""Everything that the two commands read."""

from __future__ import annotations

import os
from dataclasses import field
from enum import StrEnum
from typing import Any, ClassVar

from omegaconf import MISSING

from trimtab.backing import Backing
from trimtab.config.measure import MeasureConfig, SeedConfig
from trimtab.config.tracking import TrackingConfig
from trimtab.settings import Settings, setting, settings


class OnMissing(StrEnum):
    """What `evaluate.py` does where the artifact of a method does not exist yet."""

    calibrate = "calibrate"
    error = "error"


@settings
class SearchConfig(Settings):
    """What `experiment=search` looks for: the largest speedup within a quality budget."""

    place: ClassVar[str] = "search"

    max_bpb_increase: float | None = setting(
        default=0.02,
        meaning="the quality budget: most that bits per byte of held-out text may rise, its whole "
        "interval, relative to the unmodified model (0.02 is 2 %); null is any",
        at_least=0,
    )


@settings
class CommandConfig(SeedConfig):
    """What both commands read."""

    model: Any = MISSING
    corpus: Any = MISSING
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    artifacts: str = setting(default="artifacts", meaning="folder that artifacts are kept under")
    threads: int | None = setting(
        default=None, meaning="CPU threads; null leaves PyTorch's choice", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        cores = len(os.sched_getaffinity(0))
        expected = f"null or at least 1 and at most {cores}, the cores this process may use"
        self.require(self.threads is None or self.threads <= cores, "threads", expected)


@settings
class CalibrateConfig(CommandConfig):
    """Everything `calibrate.py` reads: one method or a stack."""

    method: Any = None
    methods: dict[str, Any] = field(default_factory=dict)
    force: bool = setting(default=False, meaning="calibrate again even if the artifact exists")


@settings
class EvaluateConfig(CommandConfig, MeasureConfig):
    """Everything `evaluate.py` reads."""

    methods: dict[str, Any] = MISSING
    search: SearchConfig = field(default_factory=SearchConfig)
    on_missing: OnMissing = setting(
        default=OnMissing.calibrate, meaning="what to do where an artifact does not exist"
    )
    memory: Backing = setting(
        default=Backing.huge,
        meaning="what backs the weights of both models: huge pages, or the ordinary ones that "
        "loading and methods leave them in (as_loaded)",
    )
