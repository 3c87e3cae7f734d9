"""Values of the command line that can mean nothing, each refused with what to write instead."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override

from trimtab.commands.messages import owners
from trimtab.commands.parsing import choices, full_key, groups_of, key_of, parsed
from trimtab.errors import TrimtabError
from trimtab.registry import group_options, stack_members
from trimtab.settings import defaults


def require_values(argument: str, loader: ConfigLoader, command: str) -> None:
    """Refuse what no option or setting can be, and a sweep over nothing or one value twice.

    Raises
    ------
    TrimtabError
    """
    if (key := key_of(argument)) is None:
        return
    (override,) = parsed([argument], loader)
    _require_truth(override, key)
    _require_settings(override, loader)
    if key in groups_of(command) and any(one.count("[") > 1 for one in choices(override)):
        raise TrimtabError(
            f"{argument}: is a list of lists; expected options of {key}, as in "
            "'methods=[larosa,vattention]'"
        )
    if key in ("method", "methods"):
        _require_stack(override, command)
    if override.is_discrete_sweep():
        alike: dict[Any, list[str]] = {}
        for value in choices(override):
            alike.setdefault(_meaning(value, key), []).append(value)
        if not alike:
            options = loader.get_group_options(override.key_or_group)
            there = f"; there are: {', '.join(options)}" if options else ""
            raise TrimtabError(f"{argument}: a sweep over no value{there}")
        most = max(alike.values(), key=len)
        if len(most) > 1:
            spelled = " and ".join(dict.fromkeys(most))
            told = (
                f"{spelled} is there {len(most)} times"
                if len({*most}) == 1
                else f"{spelled} are one"
            )
            raise TrimtabError(
                f"{argument}: {told}: name it once, and sweep over seed=0,1 to measure it again"
            )
    elif (
        key in groups_of(command)
        and not override.is_sweep_override()
        and not isinstance(override.value(), str | list)
    ):
        fix = (
            "methods=baseline is no method"
            if key == "methods"
            else f"leave {key} out for the default"
        )
        there = ", ".join(group_options(key))
        raise TrimtabError(f"{argument}: is no option, {fix}; there are: {there}")


def _require_settings(override: Override, loader: ConfigLoader) -> None:
    """Refuse a value for what has settings of Hydra's: an option is chosen by its group."""
    group = full_key(override).replace(".", "/")
    if not group.startswith("hydra/") or not (options := loader.get_group_options(group)):
        return
    value = override.value()
    if isinstance(value, dict):
        return
    write = f"{group}={value if isinstance(value, str) else 'OPTION'}"
    raise TrimtabError(
        f"{override.input_line}: an option is chosen by its group: write {write}; there are: "
        f"{', '.join(options)}"
    )


def _require_stack(override: Override, command: str) -> None:
    """Refuse a list for one method, and one that names no method beside others."""
    for value in choices(override):
        parts = [one.strip(" '\"") for one in value.strip("[]").split(",")]
        if not value.startswith("[") or (override.key_or_group == "methods" and len(parts) == 1):
            continue
        if override.key_or_group == "method":
            raise TrimtabError(f"method={value}: is a stack, write 'methods={value}'")
        if (none := "baseline") in parts:
            each = f"; -m methods={','.join(parts)} measures each" if command == "evaluate" else ""
            raise TrimtabError(f"methods={value}: {none} is no method: leave it out{each}")


def _meaning(value: str, key: str) -> Any:
    """Return what a value means, however it is spelled: of a stack, its methods."""
    bare = value.strip("'\"")
    if key != "methods":
        return bare
    parts = [one.strip(" '\"") for one in bare.strip("[]").split(",")]
    ours = group_options("methods")  # what an option of the user's holds is not known
    return frozenset().union(*(stack_members(one) if one in ours else {one} for one in parts))


def _require_truth(override: Override, key: str) -> None:
    """Refuse a number for true, which OmegaConf makes of any but zero."""
    name = key.rpartition(".")[2]
    if not any(isinstance(defaults(one)[name], bool) for one in owners(key)):
        return
    for value in choices(override):
        if re.fullmatch(r"[+-]?\d+", value) and int(value) not in (0, 1):
            raise TrimtabError(f"{key}={value}: expected true or false")
