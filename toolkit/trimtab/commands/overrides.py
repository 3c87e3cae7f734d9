"""What is typed on the command line, as Hydra takes it.

A setting of a method can be written by itself, and in a sweep over stacks a setting of a method is
for those stacks that hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override

from trimtab.commands.arguments import (
    ordered,
    require_kept,
    require_own,
    require_readable,
)
from trimtab.commands.dictionaries import one_by_one
from trimtab.commands.mode import require_no_mode
from trimtab.commands.parsing import MULTIRUN, choices, key_of, loader_of, parsed
from trimtab.commands.sweep import NEEDS_SWEEP
from trimtab.commands.texts import as_text
from trimtab.commands.values import require_values
from trimtab.config import CalibrateConfig
from trimtab.errors import TrimtabError, nearest
from trimtab.registry import (
    COMMANDS,
    default_options,
    method_names,
    stack_members,
    targets,
)
from trimtab.settings import defaults

PARAMS = "hydra.sweeper.params"


def expand(arguments: list[str], command: str) -> list[str]:
    """Return the arguments with the settings of methods under their full names.

    ``sparsity=0.4`` and ``larosa.sparsity=0.4`` are ``method.sparsity=0.4`` for one method, as
    calibrate.py takes it, and ``methods.larosa.sparsity=0.4`` for a stack. A key that belongs to
    nothing stays, and is refused under that name. Values are as `trimtab.commands.texts` reads
    them, and settings in a dictionary stand one by one. What is typed as ``hydra.sweeper.params``
    is an override of the sweep. Of a key that is typed several times the last counts, and is alone
    in what is returned.

    Raises
    ------
    TrimtabError
        If several methods have a setting of that name, or a method has none in a sweep; if only a
        sweep reads it, and this is none; if a setting is the other command's; if both one method
        and a stack are named; or for what
        `trimtab.commands.arguments`, `.dictionaries`, `.mode`, `.texts` and `.values` refuse.
    """
    require_own(arguments, command)
    sweep = any(one in MULTIRUN for one in arguments)
    arguments = [one for together in ordered(arguments) for one in one_by_one(together)]
    arguments = [_of_sweep(one, sweep) for one in arguments]
    for one in arguments:
        require_readable(one, command)
        require_kept(one, command)
    given = [as_text(one, sweep) for one in arguments]
    loader = loader_of(given)
    require_no_mode(given, loader)
    for one in given:
        require_values(one, loader, command)
    one_method, stacks = _asked("method", given, loader), _asked("methods", given, loader)
    if command == "calibrate" and not stacks:
        methods = {name for one in one_method for name in choices(one)}
        methods = methods or {default_options()["method"]}
        return _last(_for_method(one, methods) for one in given)
    if command == "calibrate" and one_method:
        both = " and ".join(str(one.input_line) for one in (*one_method, *stacks))
        raise TrimtabError(f"{both}: name one method or a stack, not both")
    held = _held(stacks)
    expanded = [_for_stacks(one, sweep, held, command) for one in given]
    if command == "calibrate":  # beside the others: options may follow
        expanded.insert(given.index(str(stacks[0].input_line)), "~method")
    return _last(expanded)


def _of_sweep(argument: str, sweep: bool) -> str:
    """Return a parameter of the sweeper as the override that it stands for."""
    key = key_of(argument) or ""
    if not f"{key}.".startswith(f"{PARAMS}."):
        return argument
    if not sweep:
        raise TrimtabError(f"{argument}: {NEEDS_SWEEP}")
    if key == PARAMS:
        raise TrimtabError(f"{argument}: name the values of each setting by itself: SETTING=A,B")
    return argument.lstrip("+").removeprefix(f"{PARAMS}.")


def _last(arguments: Iterable[str]) -> list[str]:
    """Return the arguments without settings that are set again by a later one."""
    return list({key_of(one) or place: one for place, one in enumerate(arguments)}.values())


def _for_method(argument: str, methods: set[str]) -> str:
    key = key_of(argument)
    if key is None:
        return argument
    head, _, rest = key.partition(".")
    if head == "methods":
        value = argument.partition("=")[2]
        write = f"{rest.rpartition('.')[2]}={value}"
        raise TrimtabError(f"{argument}: no stack is named, write {write} or name one: methods=...")
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


def _held(stacks: list[Override]) -> set[str]:
    """Return the methods of all stacks that are asked for, or all where none is."""
    named = [stack for one in stacks for stack in choices(one)]
    return {member for stack in named for member in stack_members(stack)} or set(method_names())


def _asked(group: str, arguments: list[str], loader: ConfigLoader) -> list[Override]:
    return parsed([one for one in arguments if one.startswith(f"{group}=")], loader)


def _for_stacks(argument: str, sweep: bool, held: set[str], command: str) -> str:
    methods = targets("method")
    key = key_of(argument)
    if key is None or key in {one.name for one in fields(COMMANDS[command])} - {"method"}:
        return argument
    head, _, rest = key.partition(".")
    if head == "method":
        value = argument.partition("=")[2]
        owners = [name for name in _owners(rest) if name in held] or _owners(rest)
        write = f"{rest}={value}" if rest else f"methods={value}"
        if len(owners) > 1:
            write = " or ".join(f"methods.{name}.{write}" for name in owners)
        raise TrimtabError(f"{argument}: {command}.py takes a stack of methods, write {write}")
    if rest and head in methods:
        argument, key = _prefixed(argument, "methods"), f"methods.{key}"
    if "." not in key:
        owners = _owners(key)
        owners = [name for name in owners if name in held] or owners
        if len(owners) > 1:
            choices = " or ".join(f"methods.{name}.{argument}" for name in owners)
            raise TrimtabError(
                f"{key} is a setting of {' and '.join(owners)}: write {choices}, or each of them"
            )
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


def _prefixed(argument: str, node: str) -> str:
    """Put a node before the key of an argument, after the plus signs that it may have."""
    key = argument.lstrip("+")
    return f"{argument[: len(argument) - len(key)]}{node}.{key}"
