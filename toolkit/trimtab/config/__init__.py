"""What the two commands are configured with, apart from models, corpora and methods.

This package is imported before anything heavy, so that `--help`, `--cfg job` and a mistyped key
answer at once.
"""

from trimtab.config.commands import (
    CalibrateConfig,
    CommandConfig,
    EvaluateConfig,
    OnMissing,
    SearchConfig,
)
from trimtab.config.measure import METRICS, MeasureConfig, SeedConfig
from trimtab.config.timing import LEAST_TIMED, EnergyConfig, SpeedConfig
from trimtab.config.tracking import TrackingConfig, TrackingMode
from trimtab.config.workload import GenerationConfig, QualityConfig, ServingConfig

__all__ = [
    "LEAST_TIMED",
    "METRICS",
    "CalibrateConfig",
    "CommandConfig",
    "EnergyConfig",
    "EvaluateConfig",
    "GenerationConfig",
    "MeasureConfig",
    "OnMissing",
    "QualityConfig",
    "SearchConfig",
    "SeedConfig",
    "ServingConfig",
    "SpeedConfig",
    "TrackingConfig",
    "TrackingMode",
]
