"""The metrics, one file each: what it measures, and what it writes into result.json."""

from __future__ import annotations

from trimtab.classes import class_named
from trimtab.errors import ConfigError
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Metric

__all__ = ["Metric", "metrics_of", "prepare"]


def metrics_of(paths: dict[str, str]) -> list[type[Metric]]:
    """Return the classes that the setting `metrics` names, in order.

    Raises
    ------
    ConfigError
        If a path names no metric, or a metric comes before one whose samples it needs.
    """
    kinds: list[type[Metric]] = []
    for name, path in paths.items():
        setting = f"metrics.{name}"
        kind = class_named(setting, path)
        if not issubclass(kind, Metric):
            raise ConfigError(setting, path, "expected a trimtab.evaluation.metrics.Metric")
        if kind.summarise is Metric.summarise:
            raise ConfigError(setting, path, "expected a metric with a method summarise of its own")
        for other in kind.needs:
            if other not in kinds:
                raise ConfigError(
                    setting, path, f"needs the samples of {other.__name__}: have it before this one"
                )
        kinds.append(kind)
    return kinds


def prepare(job: Job) -> dict[type[Metric], Metric]:
    """Make the metrics of a job, none of those that need weights that mean something without them.

    Raises
    ------
    TrimtabError
        If the text is too short for one, or a setting of one is wrong.
    """
    for kind in metrics_of(job.settings.metrics):
        if job.known_weights or not kind.reads_weights:
            job.metrics[kind] = kind(job)
    return job.metrics
