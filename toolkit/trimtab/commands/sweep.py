"""The sweep that a job belongs to: how many jobs it has, and which of their settings are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import abspath, relpath
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from trimtab.commands.parsing import choices, parsed
from trimtab.errors import ConfigError, TrimtabError, nearest
from trimtab.files import REPORT
from trimtab.registry import method_names
from trimtab.sweep_state import started

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
UNFINISHED = "hydra_plugins.trimtab_unfinished.Unfinished"
OF_SWEEPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.", "hydra.sweep.")
NEEDS_SWEEP = "only a sweep reads it, which needs -m"
OF_ONE_JOB = "hydra.run."
BY_NUMBER = "${hydra.job.num}"
SEARCH = "hydra_plugins.trimtab_search.Search"


def in_sweep() -> bool:
    """Return whether the running job is one of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def require_sweep() -> None:
    """Refuse for a single job what only a sweep reads.

    Settings of launchers and sweepers are, and an experiment that sweeps over stacks, unless the
    job's stack is given.

    Raises
    ------
    TrimtabError
    """
    hydra = HydraConfig.get()
    if in_sweep():
        return
    for one in of_hydra(hydra):
        if one.lstrip("+~").startswith(OF_SWEEPS):
            raise TrimtabError(f"{one}: {NEEDS_SWEEP}")
    given = any(one.startswith("methods=") for one in hydra.overrides.task)
    if not given and "methods" in (hydra.sweeper.get("params") or ()):
        raise TrimtabError(
            f"experiment={hydra.runtime.choices['experiment']} sweeps over stacks, which needs -m; "
            "one job of it needs methods=STACK"
        )


def require_single(hydra: HydraConf) -> None:
    """Refuse for a sweep what only a job of its own reads.

    Raises
    ------
    TrimtabError
    """
    for one in of_hydra(hydra):
        if one.lstrip("+~").startswith(OF_ONE_JOB):
            write = one.lstrip("+~").replace(OF_ONE_JOB, "hydra.sweep.", 1)
            raise TrimtabError(f"{one}: only a single job reads it, of a sweep it is {write}")


def of_hydra(hydra: HydraConf) -> list[str]:
    """Return the overrides of Hydra's own settings as they were typed, ``${...}`` included."""
    found: Any = OmegaConf.to_container(hydra.overrides.hydra)
    return list(found)


def sweep_folder() -> Path:
    """Return the folder that the folders of the running job and of the others are in."""
    hydra = HydraConfig.get()
    return Path(hydra.runtime.cwd) / hydra.sweep.dir


def require_below(sweep: Path, name: str) -> None:
    """Refuse a folder of a job that is not among those of its sweep, or would be its report's.

    Parameters
    ----------
    name : str
        What `hydra.sweep.subdir` makes of the job.

    Raises
    ------
    ConfigError
    """
    place = relpath(abspath(sweep / name), abspath(sweep))
    if place.split("/")[0] in (".", "..", REPORT):
        raise ConfigError(
            "hydra.sweep.subdir", name, "expected a folder of the job's own below the sweep's, "
            f"and not below its {REPORT}/: leave it out, and each job has a number"
        )  # fmt: skip


def sweep_name() -> str | None:
    """Return the name that the jobs of one sweep share, or None outside a sweep."""
    return "/".join(sweep_folder().parts[-2:]) if in_sweep() else None


def tries_all(hydra: HydraConf) -> bool:
    """Return whether the sweeper runs every combination; another chooses values as it goes."""
    return hydra.sweeper._target_ in (BASIC, UNFINISHED)


def foreign_methods(config: DictConfig) -> list[str]:
    """Return the methods that a job has settings of and does not hold in its stack.

    Raises
    ------
    ConfigError
        If a method has a value instead of settings.
    """
    if OmegaConf.is_missing(config, "methods"):
        return []
    for name, node in config.methods.items():
        if not isinstance(node, DictConfig):
            write = f"write methods.{name}.SETTING=VALUE"
            raise ConfigError(f"methods.{name}", node, f"expected one of its settings: {write}")
    return [name for name, node in config.methods.items() if "_target_" not in node]


def without_foreign(config: DictConfig, hydra: HydraConf) -> DictConfig:
    """Take settings of methods that a job's stack does not hold out of its configuration.

    Raises
    ------
    TrimtabError
        If there is no such method; or, outside of a sweep, whose other jobs may hold it, if it is
        wanted.
    """
    if not (foreign := foreign_methods(config)):
        return config
    for name in foreign:
        if name not in method_names():
            hint, known = nearest(name, method_names()), ", ".join(method_names())
            raise TrimtabError(f"methods.{name}: no such method{hint}; there are: {known}")
    wanted = [name for name in foreign if is_wanted(name, hydra.overrides.task)]
    if wanted and hydra.mode != RunMode.MULTIRUN:
        raise TrimtabError(
            f"methods.{wanted[0]}: {wanted[0]} is not in the stack, write methods={wanted[0]}"
        )
    kept = config.copy()
    with open_dict(kept):
        for name in foreign:
            del kept.methods[name]
    return kept


def is_wanted(method: str, overrides: Sequence[str]) -> bool:
    """Return whether settings of a method are typed, or a file has them and no stack is typed."""
    keys = [one.lstrip("+~") for one in overrides]
    return any(_names(one, [method]) for one in keys) or not any(
        one.startswith("methods=") for one in keys
    )


def own_settings(hydra: HydraConf) -> list[str]:
    """Return the overrides of the running job that not all jobs of its sweep have.

    Its stack, and settings of methods and of tracking, are not among them. Empty where the sweeper
    chooses values as it goes.
    """
    if not in_sweep() or not tries_all(hydra):
        return []
    jobs = [_values(job) for job in started(sweep_folder()).values()]
    return [
        f"{key}={value}"
        for key, value in _values(hydra.overrides.task).items()
        if key.partition(".")[0] not in ("method", "methods", "tracking")
        and any(other.get(key) != value for other in jobs)
    ]


def repeats(config: DictConfig) -> str:
    """Return in which settings another job of the sweep differs that measures the same.

    They are those of methods that the running job's stack does not hold, as that other job has
    them; empty where it has none, or is that job.
    """
    foreign = foreign_methods(config)
    hydra = HydraConfig.get()
    if not foreign or not in_sweep() or not tries_all(hydra):
        return ""
    mine = _values(hydra.overrides.task)
    first = next(iter(started(sweep_folder()).values()))
    return " ".join(
        f"{key.removeprefix('methods.')}={value}"
        for key, value in _values(first).items()
        if _names(key, foreign) and value != mine[key]
    )


def _values(job: Sequence[str]) -> dict[str, str]:
    """Return what the overrides of one job set, by their keys."""
    return {one.key_or_group: choices(one)[0] for one in parsed(job) if not one.is_delete()}


def _names(key: str, methods: list[str]) -> bool:
    """Return whether a key names a setting of one of these methods."""
    return key.startswith(tuple(f"methods.{name}." for name in methods))
