"""The jobs of a sweep that is about to start: which there are, and whether each can be run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from os.path import normpath
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trimtab.commands.check import checked
from trimtab.commands.messages import is_mistake, one_line
from trimtab.commands.parsing import choices, full_key, parsed
from trimtab.commands.search import require_objective
from trimtab.commands.sweep import (
    BY_NUMBER,
    foreign_methods,
    is_wanted,
    require_below,
    tries_all,
    without_foreign,
)
from trimtab.config import EvaluateConfig
from trimtab.errors import ConfigError, TrimtabError

Job = list[str]


def jobs_of_sweep(config: DictConfig) -> dict[str, Job] | None:
    """Return the overrides of the jobs of a sweep that is about to start, by their folders.

    None where the sweeper chooses as it goes.

    Raises
    ------
    TrimtabError
        If there is no job, two would share a folder, or one would have none below the sweep's.
    """
    if not tries_all(config.hydra):
        return None
    values = [_arguments(one) for one in overrides_of(config.hydra)]
    found: dict[str, Job] = {}
    for number, job in enumerate(map(list, product(*values))):
        folder = _folder(config, number, job)
        require_below(Path(config.hydra.sweep.dir), folder)
        if folder in found:
            subdir = OmegaConf.to_container(config.hydra.sweep)["subdir"]  # type: ignore[call-overload, index]
            raise ConfigError(
                "hydra.sweep.subdir", subdir, f"{folder} would be the folder of two jobs: leave it "
                "out, and each has a number"
            )  # fmt: skip
        found[folder] = job
    return found


def require_sound(config: DictConfig, jobs: Sequence[Job]) -> list[DictConfig]:
    """Refuse a sweep of which a job can never be run, before any has begun.

    Returns
    -------
    configs : list of DictConfig
        What each job is composed of.

    Raises
    ------
    TrimtabError
        Naming what is wrong, and the overrides of the jobs that it is wrong in.
    """
    refused: dict[str, list[Job]] = {}
    foreign: list[list[str]] = []
    configs: list[DictConfig] = []
    for job in jobs:
        try:
            hydra, own = composed(config, job)
            _require_read(config.hydra, hydra)
            foreign.append(foreign_methods(own))
            kind = OmegaConf.get_type(own)
            assert kind is not None
            configs.append(without_foreign(own, hydra))
            settings = checked(configs[-1], kind)
            if isinstance(settings, EvaluateConfig) and not tries_all(hydra):
                require_objective(settings)
        except Exception as error:
            if not is_mistake(error):
                raise
            refused.setdefault(one_line(error), []).append(job)
    if refused:
        told = [f"{line}{_where(of, jobs)}" for line, of in refused.items()]
        stopped = "; no job was started: correct this and run it again" if len(jobs) > 1 else ""
        raise TrimtabError("; ".join(told) + stopped)
    for name in foreign[0]:
        if all(name in names for names in foreign) and is_wanted(name, jobs[0]):
            raise TrimtabError(
                f"methods.{name}: {name} is in no stack of the sweep, write methods={name}"
            )
    return configs


def overrides_of(hydra: HydraConf) -> list[Override]:
    """Return the overrides of a sweep: its experiment's, then those of the command line.

    What ``${...}`` stands for in the latter is in its place; a sweeper of its own leaves it to the
    jobs.
    """
    params = hydra.sweeper.get("params") or {}
    typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=tries_all(hydra))
    every = parsed([*(f"{key}={value}" for key, value in params.items()), *typed])
    return list({full_key(one): one for one in every}.values())  # the last of a key counts


def _arguments(override: Override) -> list[str]:
    """Return an override with each of its values."""
    if override.is_delete():
        return [str(override.input_line)]
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise TrimtabError(
            f"{override.input_line}: is for experiment=search; name the values of a sweep, A,B"
        )
    if not (values := choices(override)):
        raise TrimtabError(f"{override.input_line}: a sweep over no value")
    return [f"{override.get_key_element()}={value}" for value in values]


def _folder(config: DictConfig, number: int, job: Job) -> str:
    """Return the name of the folder that Hydra gives a job of this number."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep)
    if sweep["subdir"] == BY_NUMBER:
        return str(number)
    own = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
    with open_dict(own):
        own.hydra.job.id = own.hydra.job.num = number
    return normpath(str(own.hydra.sweep.subdir))


def composed(config: DictConfig, job: Job) -> tuple[HydraConf, DictConfig]:
    """Return Hydra's part of a job's configuration, and ours."""
    return apart(GlobalHydra.instance().config_loader().load_sweep_config(config, job))


def apart(config: DictConfig) -> tuple[HydraConf, DictConfig]:
    """Take Hydra's part out of a configuration, and return it and what is left."""
    hydra = config.hydra
    with read_write(config), open_dict(config):
        del config["hydra"]
    return hydra, config


def _require_read(sweep: HydraConf, job: HydraConf) -> None:
    """Refuse what an option of a job alone says of the sweep: it is over before the job is chosen.

    Raises
    ------
    TrimtabError
    """
    known = {full_key(one) for one in overrides_of(sweep)}
    stacks = [
        key for one in job.sweeper.get("params") or () if (key := one.lstrip("+")) not in known
    ]
    pairs = {"launcher": (sweep.launcher, job.launcher), "sweeper": (sweep.sweeper, job.sweeper)}
    parts = [part for part, (one, other) in pairs.items() if one._target_ != other._target_]
    if found := [*stacks, *(f"hydra/{part}" for part in parts)]:
        names = " and ".join(found)
        values = " ".join(f"{one}=" for one in found)
        raise TrimtabError(
            f"experiment={job.runtime.choices.get('experiment')} has {names} of its own, which are "
            f"not read where a sweep is over experiments: start a sweep for each, or name {values}"
        )


def _where(refused: Sequence[Job], jobs: Sequence[Job]) -> str:
    """Say which jobs of a sweep these are, unless they are all."""
    if len(refused) == len(jobs):
        return ""
    common = [one for one in refused[0] if all(one in job for job in refused)]
    own = [one.lstrip("+") for one in common if not all(one in job for job in jobs)]
    count = f"{len(refused)} of {len(jobs)} jobs"
    return f" ({count}: {' '.join(own)})" if own else f" ({count})"
