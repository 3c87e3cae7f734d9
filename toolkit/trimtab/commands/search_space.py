"""What a trial of a search is: values for the overrides of the sweep that leave a choice."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
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


def size(overrides: Mapping[str, Override]) -> int | None:
    """Return how many configurations there are to choose from; None where there is no end."""
    swept = {key: one for key, one in overrides.items() if one.is_sweep_override()}
    if any(one.is_interval_sweep() for one in swept.values()):
        return None
    return sum(
        prod(len(values) for values in _read(stack, swept).values()) for stack in _stacks(overrides)
    )


def samples(overrides: Mapping[str, Override]) -> list[list[str]]:
    """Return jobs in which every value that may be chosen is, each with every stack that reads it.

    Of an interval they have the ends. All else in a job is the first of its values.
    """
    swept = {key: one for key, one in overrides.items() if one.is_sweep_override()}
    fixed = [
        str(one.input_line) if one.is_delete() else f"{one.get_key_element()}={choices(one)[0]}"
        for key, one in overrides.items()
        if key not in swept
    ]
    jobs = []
    for stack in _stacks(overrides):
        read = _read(stack, swept)
        first = {key: values[0] for key, values in read.items()}
        of_stack = {"methods": stack} if "methods" in swept else {}
        changed = [{key: one} for key, values in read.items() for one in values[1:]]
        for change in [{}, *changed]:
            values = {**of_stack, **first, **change}
            typed = [f"{swept[key].get_key_element()}={one}" for key, one in values.items()]
            jobs.append([*fixed, *typed])
    return jobs


def _stacks(overrides: Mapping[str, Override]) -> list[str]:
    return choices(overrides["methods"]) if "methods" in overrides else ["baseline"]


def _read(stack: str, swept: Mapping[str, Override]) -> dict[str, list[str]]:
    """Return the values that may be chosen of each setting that a stack reads."""
    return {
        key: _values(one) for key, one in swept.items() if key != "methods" and _reads(stack, key)
    }


def _values(override: Override) -> list[str]:
    if not override.is_interval_sweep():
        return choices(override)
    sweep: Any = override.value()
    return [str(sweep.start), str(sweep.end)]


def _is_read(key: str, trial: Trial, overrides: Mapping[str, Override]) -> bool:
    """Return whether a setting is not one of a method that the trial's stack leaves out."""
    chosen = [trial.params["methods"]] if "methods" in trial.params else _stacks(overrides)
    return _reads(chosen[0], key)


def _reads(stack: str, key: str) -> bool:
    head, _, rest = key.partition(".")
    method = rest.partition(".")[0]
    return head != "methods" or method not in method_names() or method in stack_members(stack)


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
