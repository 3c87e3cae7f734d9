"""What is typed on the command line, as Hydra takes it.

A setting of a method can be written by itself, and in a sweep over stacks a setting of a method is
for those stacks that hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any, get_type_hints

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from trimtab.commands.messages import nearest
from trimtab.config import CalibrateConfig, EvaluateConfig
from trimtab.errors import TrimtabError
from trimtab.registry import default_options, group_options, method_names, stack_members, targets
from trimtab.settings import defaults

MULTIRUN = ("-m", "--multirun")
# No float is as large, and Python reads no number of some thousand digits.
TOO_LONG = re.compile(r"(?<![\w.])\d[\d_]{308,}(?![\w.])")


def expand(arguments: list[str], command: str) -> list[str]:
    """Return the arguments with the settings of methods under their full names.

    ``sparsity=0.4`` and ``larosa.sparsity=0.4`` are ``method.sparsity=0.4`` for calibrate.py and
    ``methods.larosa.sparsity=0.4`` for evaluate.py. A key that belongs to nothing stays, and is
    refused under that name. A value that Hydra's grammar cannot read is a text as it stands, and
    ``~/`` at its beginning is the home folder.

    Raises
    ------
    TrimtabError
        If several methods have a setting of that name, or a method has none in a sweep; if a
        setting is the other command's, or added to Hydra's own and read by nothing; if a sweep is
        over no value, or a number has hundreds of digits.
    """
    sweep = any(one in MULTIRUN for one in arguments)
    arguments = sorted(arguments, key=lambda one: one not in MULTIRUN)  # argparse wants it first
    for one in arguments:
        if one.startswith("+"):
            _require_read(one)
        if number := TOO_LONG.search(one):
            raise TrimtabError(
                f"{one:.60}...: expected a number of less than 300 digits, not {len(number[0])}"
            )
    given = [_as_text(one, sweep) for one in arguments]
    for one in given:
        _require_values(one)
    if command == "calibrate":
        methods = {stack for one in _asked("method", given) for stack in _choices(one)}
        methods = methods or {default_options()["method"]}
        return [_for_method(one, methods) for one in given]
    held = _held(given)
    return [_for_stacks(one, sweep, held) for one in given]


def _as_text(argument: str, sweep: bool) -> str:
    """Quote a value that Hydra's grammar cannot read."""
    if _key(argument) is None:
        return argument
    key, _, value = argument.partition("=")
    if value == "~" or value.startswith("~/"):
        value = expanduser(value)
    try:
        _parsed([f"{key}={value}"])
        return f"{key}={value}"
    except HydraException as error:
        if sweep and "," in value:
            raise TrimtabError(
                f"{argument}: cannot be read as values to sweep over: quote each of them, as in "
                f'\'{key}="FIRST","SECOND"\''
            ) from error
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _require_values(argument: str) -> None:
    """Refuse a sweep that no job would come of, as over a pattern that matches no option."""
    if _key(argument) is None:
        return
    (override,) = _parsed([argument])
    if override.is_discrete_sweep() and not _choices(override):
        options = group_options(override.key_or_group)
        there = f"; there are: {', '.join(options)}" if options else ""
        raise TrimtabError(f"{argument}: a sweep over no value{there}")


def _require_read(argument: str) -> None:
    """Refuse what is added to Hydra's own settings where nothing reads it."""
    first, *rest = (_key(argument) or "").split(".")
    kind: Any = HydraConf
    for place, name in enumerate(rest if first == "hydra" else ()):
        if not is_dataclass(kind):  # a dictionary, or what a plugin reads
            return
        known = get_type_hints(kind)
        if name not in known:
            raise TrimtabError(
                f"unknown setting {_key(argument)}{nearest(name, list(known))}; "
                f"{'.'.join(['hydra', *rest[:place]])} has: {', '.join(known)}"
            )
        kind = known[name]


def _for_method(argument: str, methods: set[str]) -> str:
    key = _key(argument)
    if key is None:
        return argument
    head, _, rest = key.partition(".")
    if head == "methods":
        value = argument.partition("=")[2]
        write = f"{rest.rpartition('.')[2]}={value}" if rest else f"method={value}"
        raise TrimtabError(f"{argument}: calibrate.py takes one method, write {write}")
    if rest and head in method_names():
        if head not in methods:
            raise TrimtabError(f"{argument}: {head} is not the method, write method={head}")
        return argument.replace(f"{head}.", "method.", 1)
    known = [one.name for one in fields(CalibrateConfig)]
    meant = key in known or (nearest(key, known) and not _owners(key))
    return argument if rest or meant else _prefixed(argument, "method")


def _owners(key: str) -> list[str]:
    """Return the methods that have a setting of this name."""
    return [name for name, kind in targets("method").items() if key in defaults(kind)]


def _held(arguments: list[str]) -> set[str]:
    """Return the methods of all stacks that are asked for, or all where none is."""
    choices = [stack for one in _asked("methods", arguments) for stack in _choices(one)]
    return {member for stack in choices for member in stack_members(stack)} or set(method_names())


def _asked(group: str, arguments: list[str]) -> list[Override]:
    return _parsed([one for one in arguments if one.startswith(f"{group}=")])


def _for_stacks(argument: str, sweep: bool, held: set[str]) -> str:
    methods = targets("method")
    key = _key(argument)
    if key is None or key in {one.name for one in fields(EvaluateConfig)}:
        return argument
    head, _, rest = key.partition(".")
    if head == "method":
        value = argument.partition("=")[2]
        write = f"{rest}={value}" if rest else f"methods={value}"
        raise TrimtabError(f"{argument}: evaluate.py takes a stack of methods, write {write}")
    if rest and head in methods:
        argument, key = _prefixed(argument, "methods"), f"methods.{key}"
    if "." not in key:
        owners = _owners(key)
        owners = [name for name in owners if name in held] or owners
        if len(owners) > 1:
            choices = " or ".join(f"methods.{name}.{argument}" for name in owners)
            raise TrimtabError(f"{key} is a setting of {' and '.join(owners)}: write {choices}")
        if not owners:
            return argument
        argument = _prefixed(argument, f"methods.{owners[0]}")
        key = f"methods.{owners[0]}.{key}"
    found = re.fullmatch(r"methods\.(\w+)\.(\w+)", key)
    if not sweep or found is None or found[1] not in methods:
        return argument
    if found[2] not in defaults(methods[found[1]]):
        raise TrimtabError(
            f"unknown setting {key}; {found[1]} has: {', '.join(defaults(methods[found[1]]))}"
        )
    # Added where the stack of a job does not hold the method; `without_foreign` takes it out.
    return f"++{argument.lstrip('+')}"


def _key(argument: str) -> str | None:
    match = re.match(r"\+{0,2}([A-Za-z_][\w.]*)=", argument)
    return match[1] if match else None


def _prefixed(argument: str, node: str) -> str:
    """Put a node before the key of an argument, after the plus signs that it may have."""
    key = argument.lstrip("+")
    return f"{argument[: len(argument) - len(key)]}{node}.{key}"


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
    if OmegaConf.is_missing(config, "methods"):
        return config, ""
    foreign = [name for name, node in config.methods.items() if "_target_" not in (node or {})]
    if not foreign:
        return config, ""
    for name in foreign:
        if name not in method_names():
            hint, known = nearest(name, method_names()), ", ".join(method_names())
            raise TrimtabError(f"methods.{name}: no such method{hint}; there are: {known}")
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        raise TrimtabError(
            f"methods.{foreign[0]}: {foreign[0]} is not in the stack, write methods={foreign[0]}"
        )
    kept = config.copy()
    with open_dict(kept):
        for name in foreign:
            del kept.methods[name]
    if not hydra.sweeper._target_.endswith(".BasicSweeper"):  # others choose values as they go
        return kept, ""
    sweep = list(_sweep())
    stacks = [stack for one in sweep if one.key_or_group == "methods" for stack in _choices(one)]
    held = {member for stack in stacks for member in stack_members(stack)}
    for name in foreign:
        if name not in held:
            raise TrimtabError(
                f"methods.{name}: {name} is in no stack of the sweep, write methods={name}"
            )
    mine = {one.key_or_group: _choices(one)[0] for one in _parsed(list(hydra.overrides.task))}
    firsts = [
        f"{one.key_or_group.removeprefix('methods.')}={_choices(one)[0]}"
        for one in sweep
        if _names(one.key_or_group, foreign) and _choices(one)[0] != mine[one.key_or_group]
    ]
    return kept, " ".join(firsts)


def _names(key: str, methods: list[str]) -> bool:
    """Return whether a key names a setting of one of these methods."""
    return key.startswith(tuple(f"methods.{name}." for name in methods))


def _sweep() -> Iterator[Override]:
    """Yield the overrides of the sweep that the running job belongs to."""
    hydra = HydraConfig.get()
    whole = OmegaConf.load(Path(hydra.runtime.cwd) / hydra.sweep.dir / "multirun.yaml").hydra
    yield from _parsed(list(whole.overrides.task))
    params = whole.sweeper.get("params") or {}
    yield from _parsed([f"{key}={value}" for key, value in params.items()])


def _parsed(overrides: list[str]) -> list[Override]:
    return list(OverridesParser.create().parse_overrides(overrides))


def _choices(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(group_options(override.key_or_group))
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [str(override.get_value_element_as_str())]
