"""Whether jobs that go on with a sweep would have the settings that it was started with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from trimtab.commands.jobs import composed
from trimtab.errors import ConfigError
from trimtab.files import flatten
from trimtab.ranges import written
from trimtab.sweep_state import interpolations

# What Hydra writes as a job begins, into a folder that hydra.output_subdir names.
GIVEN = "overrides.yaml"


def require_same(config: DictConfig, sweep: Path, jobs: Sequence[Path]) -> None:
    """Refuse to go on where what the settings come from says something else by now.

    Compared is every job that has begun, and of all jobs what was written with ``${...}``; where
    files go for tracking may differ.

    Parameters
    ----------
    config : DictConfig
        What is resumed, as it is composed now.
    sweep : Path
        Its folder.
    jobs : sequence of Path
        The folders of its jobs, begun or not.

    Raises
    ------
    ConfigError
        Naming what differs.
    """
    for started, before, after in (*_begun(config, jobs), *_resolved(config, sweep)):
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            told = "; ".join(
                f"{key} was {written(before.get(key))} and is {written(after.get(key))}"
                for key in changed
            )
            raise ConfigError(
                "resume", sweep, f"settings have changed since {started} was started: {told}: put "
                "back the file or the environment variable that sets them, or start it again in a "
                "new folder"
            )  # fmt: skip


def interpolated(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a job that were written with ``${...}``, with their values of now."""
    own, resolved = _settings(config), _settings(config, resolve=True)
    return {key: value for key, value in resolved.items() if own.get(key) != value}


Compared = tuple[Path, dict[str, Any], dict[str, Any]]


def _begun(config: DictConfig, jobs: Sequence[Path]) -> Iterator[Compared]:
    """Yield the jobs that have begun, each with its settings then and now, as they are written."""
    for job, path in ((one, path) for one in jobs for path in one.rglob(GIVEN)):
        started, given = _read(path.with_name("config.yaml")), _read(path)
        if started and isinstance(given, list):
            yield job, _flat(started), _settings(composed(config, given)[1])


def _resolved(config: DictConfig, sweep: Path) -> Iterator[Compared]:
    """Yield the sweep with the values that ``${...}`` had in each of its jobs, and has now."""
    for overrides, before in interpolations(sweep):
        now = _settings(composed(config, overrides)[1], resolve=True)
        yield sweep, before, {key: now.get(key) for key in before}


def _read(path: Path) -> Any:
    """Return what a file of Hydra's holds; None where it is missing or was cut off."""
    with suppress(OSError, ValueError, YAMLError):
        return OmegaConf.to_container(OmegaConf.load(path))
    return None


def _settings(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return the settings by their full names, as YAML has them."""
    text = OmegaConf.to_yaml(config, resolve=resolve)
    return _flat(OmegaConf.to_container(OmegaConf.create(text)))


def _flat(config: Any) -> dict[str, Any]:
    """Return the settings by their full names, but for those of tracking."""
    return flatten({name: part for name, part in config.items() if name != "tracking"})
