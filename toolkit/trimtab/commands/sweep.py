"""The sweep that a job belongs to: how many jobs it has, and which of their settings are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from trimtab.commands.messages import nearest
from trimtab.commands.parsing import choices, parsed
from trimtab.errors import TrimtabError
from trimtab.registry import method_names, stack_members
from trimtab.sweep_state import started

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
UNFINISHED = "hydra_plugins.trimtab_unfinished.Unfinished"
BY_NUMBER = "${hydra.job.num}"
SEARCH = "hydra_plugins.trimtab_search.Search"


def in_sweep() -> bool:
    """Return whether the running job is one of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def require_sweep() -> None:
    """Refuse a single job of an experiment that sweeps over stacks, unless its stack is given.

    Raises
    ------
    TrimtabError
    """
    hydra = HydraConfig.get()
    given = any(one.startswith("methods=") for one in hydra.overrides.task)
    if not in_sweep() and not given and "methods" in (hydra.sweeper.get("params") or ()):
        raise TrimtabError(
            f"experiment={hydra.runtime.choices['experiment']} sweeps over stacks, which needs -m; "
            "one job of it needs methods=STACK"
        )


def sweep_folder() -> Path:
    """Return the folder that the folders of the running job and of the others are in."""
    hydra = HydraConfig.get()
    return Path(hydra.runtime.cwd) / hydra.sweep.dir


def sweep_name() -> str | None:
    """Return the name that the jobs of one sweep share, or None outside a sweep."""
    return "/".join(sweep_folder().parts[-2:]) if in_sweep() else None


def tries_all(hydra: HydraConf) -> bool:
    """Return whether the sweeper runs every combination; another chooses values as it goes."""
    return hydra.sweeper._target_ in (BASIC, UNFINISHED)


def jobs_of_sweep(config: DictConfig) -> dict[str, list[str]] | None:
    """Return the overrides of the jobs of a sweep that is about to start, by their folders.

    None where the sweeper chooses as it goes.

    Raises
    ------
    TrimtabError
        If there is no job.
    """
    if not tries_all(config.hydra):
        return None
    overrides = _overrides(config.hydra)
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    if not jobs:
        empty = next(one for one in overrides if not choices(one))
        raise TrimtabError(f"{empty.input_line}: a sweep over no value")
    return {_folder(config, number, job): job for number, job in enumerate(jobs)}


def _folder(config: DictConfig, number: int, job: list[str]) -> str:
    """Return the name of the folder that Hydra gives a job of this number."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep)
    if sweep["subdir"] == BY_NUMBER:
        return str(number)
    own = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
    with open_dict(own):
        own.hydra.job.id = own.hydra.job.num = number
    return str(own.hydra.sweep.subdir)


def without_foreign(config: DictConfig) -> tuple[DictConfig, str]:
    """Take settings of methods that a job's stack does not hold out of its configuration.

    Returns
    -------
    config : DictConfig
    repeats : str
        Where another job of the sweep differs from this one in such settings alone and does its
        work, what they are there; empty where none does.

    Raises
    ------
    TrimtabError
        If no stack of the sweep holds the method, or there is no sweep.
    """
    if OmegaConf.is_missing(config, "methods") or config.methods is None:
        return config, ""
    foreign = [name for name, node in config.methods.items() if "_target_" not in (node or {})]
    if not foreign:
        return config, ""
    for name in foreign:
        if name not in method_names():
            hint, known = nearest(name, method_names()), ", ".join(method_names())
            raise TrimtabError(f"methods.{name}: no such method{hint}; there are: {known}")
    if not in_sweep():
        raise TrimtabError(
            f"methods.{foreign[0]}: {foreign[0]} is not in the stack, write methods={foreign[0]}"
        )
    kept = config.copy()
    with open_dict(kept):
        for name in foreign:
            del kept.methods[name]
    hydra = HydraConfig.get()
    if not tries_all(hydra):
        return kept, ""
    jobs = [_values(job) for job in started(sweep_folder()).values()]
    stacks = {job["methods"] for job in jobs if "methods" in job}
    held = {member for stack in stacks for member in stack_members(stack)}
    for name in foreign:
        if name not in held:
            raise TrimtabError(
                f"methods.{name}: {name} is in no stack of the sweep, write methods={name}"
            )
    mine = _values(hydra.overrides.task)
    firsts = [
        f"{key.removeprefix('methods.')}={value}"
        for key, value in jobs[0].items()
        if _names(key, foreign) and value != mine[key]
    ]
    return kept, " ".join(firsts)


def _values(job: Sequence[str]) -> dict[str, str]:
    """Return what the overrides of one job set, by their keys."""
    return {one.key_or_group: choices(one)[0] for one in parsed(job)}


def _names(key: str, methods: list[str]) -> bool:
    """Return whether a key names a setting of one of these methods."""
    return key.startswith(tuple(f"methods.{name}." for name in methods))


def _overrides(hydra: HydraConf) -> list[Override]:
    """Return the overrides of a sweep: its experiment's, then those of the command line."""
    params = hydra.sweeper.get("params") or {}
    every = parsed([*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task])
    return list({one.get_key_element(): one for one in every}.values())  # the last of a key counts
