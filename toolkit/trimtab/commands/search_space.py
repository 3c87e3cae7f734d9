"""What a trial of a search is: values for the overrides of the sweep that leave a choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override

from trimtab.commands.parsing import choices
from trimtab.registry import method_names, stack_members

if TYPE_CHECKING:
    from optuna import Trial


def suggest(trial: Trial, overrides: Mapping[str, Override]) -> None:
    """Have the trial take a value of each override that leaves a choice and that its stack reads.

    Parameters
    ----------
    overrides : mapping of Override
        By their keys, without plus signs.
    """
    for key in sorted(overrides, key=lambda one: one != "methods"):  # the stack decides the rest
        if overrides[key].is_sweep_override() and _is_read(key, trial, overrides):
            _take(trial, key, overrides[key])


def arguments_of(trial: Trial, overrides: Mapping[str, Override]) -> list[str]:
    """Return the overrides of a trial's job, and the folder that it has."""
    job = [f"hydra.sweep.subdir={trial.user_attrs['job']}"]
    for key, override in overrides.items():
        if override.is_delete():
            job.append(str(override.input_line))
        elif not override.is_sweep_override():
            job.append(f"{override.get_key_element()}={choices(override)[0]}")
        elif key in trial.params:
            job.append(f"{override.get_key_element()}={trial.params[key]}")
    return job


def _is_read(key: str, trial: Trial, overrides: Mapping[str, Override]) -> bool:
    """Return whether a setting is not one of a method that the trial's stack leaves out."""
    head, _, rest = key.partition(".")
    method = rest.partition(".")[0]
    if head != "methods" or method not in method_names():
        return True
    chosen = [trial.params["methods"]] if "methods" in trial.params else []
    fixed = choices(overrides["methods"]) if "methods" in overrides else []
    return method in stack_members([*chosen, *fixed, "baseline"][0])


def _take(trial: Trial, key: str, override: Override) -> None:
    sweep: Any = override.value()
    if override.is_interval_sweep():
        low, high, step, log = sweep.start, sweep.end, None, "log" in sweep.tags
    elif override.is_range_sweep():
        values: list[Any] = list(override.sweep_iterator())
        low, high, step, log = min(values), max(values), abs(sweep.step), False
    else:
        trial.suggest_categorical(key, choices(override))
        return
    if isinstance(low, int) and isinstance(high, int):
        trial.suggest_int(key, low, high, step=step or 1, log=log)
    else:
        trial.suggest_float(key, low, high, step=step, log=log)
