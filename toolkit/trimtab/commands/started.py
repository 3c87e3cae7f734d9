"""What is written down of a sweep or a job that is about to start, for who resumes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trimtab.commands.jobs import Job, apart, jobs_of_sweep, overrides_of, require_sound
from trimtab.commands.same_settings import interpolated
from trimtab.commands.search_space import samples, size
from trimtab.commands.sweep import SEARCH


def of_job(config: DictConfig) -> dict[str, Any]:
    """Return what was typed for a single job, and what it stands for."""
    hydra, own = apart(config.copy())
    job: Any = OmegaConf.to_container(hydra.overrides.task)  # as they were typed
    return {**_typed(), "jobs": 1, "interpolated": _interpolated([job], [own])}


def of_sweep(config: DictConfig) -> dict[str, Any]:
    """Return what was typed for a sweep, and the jobs that came of it, all of them sound."""
    sweeper, jobs = config.hydra.sweeper, jobs_of_sweep(config)
    known: list[Job] = []
    number = sweeper.get("n_trials")
    if jobs is not None:
        known = list(jobs.values())
        number = len(jobs)
    elif sweeper._target_ == SEARCH:
        overrides = {one.key_or_group: one for one in overrides_of(config.hydra)}
        known = samples(overrides)
        number = min(number, size(overrides) or number)
    configs = require_sound(config, known) if known else []
    return {
        **_typed(), "command": config.hydra.job.name, "jobs": number, "sweeper": sweeper._target_,
        "started": jobs, "interpolated": _interpolated(known, configs),
    }  # fmt: skip


def _typed() -> dict[str, Any]:
    """Return what was typed, and where."""
    return {"arguments": sys.argv[1:], "folder": os.getcwd()}


def _interpolated(jobs: Sequence[Job], configs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """Return those jobs that have settings with ``${...}``, and the values of these."""
    return [
        {"overrides": job, "settings": found}
        for job, config in zip(jobs, configs, strict=True)
        if (found := interpolated(config))
    ]
