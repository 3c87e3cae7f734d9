"""What files set for a job, an experiment's among them, as it would be typed."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.config import EvaluateConfig
from trimtab.evaluation.settings import settings_of
from trimtab.models.sources import ModelSource
from trimtab.ranges import written
from trimtab.registry import targets
from trimtab.report.job import Job
from trimtab.report.labels import overrides
from trimtab.settings import defaults

OF_EVERY_MODEL = {f"model.{name}": value for name, value in defaults(ModelSource).items()}


def from_files(job: Job, methods: Sequence[str]) -> list[str]:
    """Return the settings of a job that are no defaults, and that nobody typed, as overrides.

    Of those of a model and a corpus, which are of the option that was chosen, only `OF_EVERY_MODEL`
    are among them; the seed is, but of jobs that were averaged.

    Parameters
    ----------
    methods : sequence of str
        Those whose settings are among them.
    """
    found = job.get("settings")
    if not found:
        return []
    kinds = targets("method")
    stack = [kinds[name]() for name in methods if name in kinds]
    config = EvaluateConfig()
    usual = settings_of(stack, config) | OF_EVERY_MODEL
    if not job.seeds:
        usual |= {"seed": config.seed}
        found = {**found, "seed": job.get("environment.seed")}
    typed = {one.partition("=")[0].removeprefix("~") for one in overrides(job)}
    told = []
    for name in {**usual, **found}:
        group, _, rest = name.partition(".")
        if group in ("model", "corpus"):
            aside = name not in OF_EVERY_MODEL
        else:
            aside = group == "methods" and rest.partition(".")[0] not in methods
        if not aside and name not in typed and usual.get(name) != found.get(name):
            told.append(_override(name, name in usual, name in found, written(found.get(name))))
    return told


def _override(name: str, usual: bool, found: bool, value: str) -> str:
    """Return the override of a setting; a metric is added, or taken out."""
    if name.startswith("metrics."):
        if not found:
            return f"~{name}"
        return f"{name}={value}" if usual else f"+{name}={value}"
    return f"{name}={value}"
