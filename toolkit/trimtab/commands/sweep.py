"""The sweep that a job belongs to: how many jobs it has, and which of their settings are theirs."""

from __future__ import annotations

from math import prod
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from trimtab.commands.messages import nearest
from trimtab.commands.parsing import choices, parsed
from trimtab.errors import TrimtabError
from trimtab.registry import method_names, stack_members

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
UNFINISHED = "hydra_plugins.trimtab_unfinished.Unfinished"
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


def count_jobs(hydra: HydraConf) -> int | None:
    """Return how many jobs a sweep that is about to start will have; None where nobody knows."""
    if not tries_all(hydra):
        return hydra.sweeper.get("n_trials")
    return prod(len(choices(one)) for one in _overrides(hydra))


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
    whole = OmegaConf.load(sweep_folder() / "multirun.yaml").hydra
    sweep = _overrides(whole)
    stacks = [stack for one in sweep if one.key_or_group == "methods" for stack in choices(one)]
    held = {member for stack in stacks for member in stack_members(stack)}
    for name in foreign:
        if name not in held:
            raise TrimtabError(
                f"methods.{name}: {name} is in no stack of the sweep, write methods={name}"
            )
    mine = {one.key_or_group: choices(one)[0] for one in parsed(hydra.overrides.task)}
    firsts = [
        f"{one.key_or_group.removeprefix('methods.')}={choices(one)[0]}"
        for one in sweep
        if _names(one.key_or_group, foreign) and choices(one)[0] != mine[one.key_or_group]
    ]
    return kept, " ".join(firsts)


def _names(key: str, methods: list[str]) -> bool:
    """Return whether a key names a setting of one of these methods."""
    return key.startswith(tuple(f"methods.{name}." for name in methods))


def _overrides(hydra: HydraConf) -> list[Override]:
    """Return the overrides of a sweep: its experiment's, then those of the command line."""
    params = hydra.sweeper.get("params") or {}
    every = parsed([*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task])
    return list({one.get_key_element(): one for one in every}.values())  # the last of a key counts
