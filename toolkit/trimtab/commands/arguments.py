"""Arguments of the command line that can mean nothing, each refused with what to write instead."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override

from trimtab.commands.messages import nearest, owner
from trimtab.commands.parsing import MULTIRUN, choices, key_of, parsed
from trimtab.errors import TrimtabError
from trimtab.registry import COMMANDS, config_folder, group_options, method_names
from trimtab.settings import defaults

# No float is as large, and Python reads no number of some thousand digits.
TOO_LONG = re.compile(r"(?<![\w.])\d[\d_]{308,}(?![\w.])")


def ordered(arguments: list[str]) -> list[str]:
    """Return the arguments as argparse takes them: settings together, options after them.

    The option that asks for a sweep comes first. The value of an option follows it.
    """
    known, apart = get_args_parser().parse_known_args(arguments)
    options = list(arguments)
    for word in (overrides := [*known.overrides, *apart]):
        options.remove(word)
    sweep = [one for one in options if one in MULTIRUN]
    return [*sweep, *overrides, *(one for one in options if one not in MULTIRUN)]


def require_own(arguments: list[str], command: str) -> None:
    """Refuse words that set nothing, and what is not of this command.

    Raises
    ------
    TrimtabError
    """
    known, apart = get_args_parser().parse_known_args(arguments)
    for word in apart:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0]
            raise TrimtabError(f"{word}: no such option; a setting has no dashes: {name}=VALUE")
    if known.config_path is not None:
        raise TrimtabError(
            f"--config-path {known.config_path}: the configuration is Trimtab's own; options of "
            "yours are added by --config-dir"
        )
    name = str(known.config_name).removesuffix(".yaml")
    if name in COMMANDS and name != command:
        raise TrimtabError(
            f"--config-name {known.config_name}: is what {name}.py reads: write python {name}.py"
        )
    for word in [*known.overrides, *apart]:
        if "=" not in word and not word.startswith(("~", "-")):
            raise TrimtabError(f"{word}: expected SETTING=VALUE{_meant(word, command)}")
        if re.match(r"[^=\s]+\s+=", word):
            raise TrimtabError(f"{word}: expected SETTING=VALUE, without a space before the =")
        if command == "calibrate" and key_of(word) == "experiment":
            raise TrimtabError(f"{word}: experiments are evaluate.py's")


def require_text(arguments: Sequence[str]) -> None:
    """Refuse what is no text: bytes that the system's encoding does not know.

    Reports, W&B and files of results could not hold it.

    Raises
    ------
    TrimtabError
    """
    for one in arguments:
        try:
            one.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TrimtabError(
                f"{one!a}: expected text in {sys.getfilesystemencoding()}: rename the file or "
                "folder, or set the locale of its name, as by LC_ALL=C.UTF-8"
            ) from error


def require_readable(argument: str, command: str) -> None:
    """Refuse what is added and nothing reads, and a number with hundreds of digits.

    Raises
    ------
    TrimtabError
    """
    if number := TOO_LONG.search(argument):
        raise TrimtabError(
            f"{argument:.60}...: expected a number of less than 300 digits, not {len(number[0])}"
        )
    if not argument.startswith("+"):
        return
    key = key_of(argument) or ""
    if key in _groups(command):
        write = f"write {argument.lstrip('+')}"
        if key == "methods":
            write += ", and several methods as one stack: 'methods=[larosa,vattention]'"
        raise TrimtabError(f"{argument}: {key} has one value, nothing is added: {write}")
    _require_read(key)


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
    if key in _groups(command) and any(one.count("[") > 1 for one in choices(override)):
        raise TrimtabError(
            f"{argument}: is a list of lists; expected options of {key}, as in "
            "'methods=[larosa,vattention]'"
        )
    if override.is_discrete_sweep():
        if not (values := Counter(choices(override))):
            options = loader.get_group_options(override.key_or_group)
            there = f"; there are: {', '.join(options)}" if options else ""
            raise TrimtabError(f"{argument}: a sweep over no value{there}")
        (most, count), *_ = values.most_common(1)
        if count > 1:
            raise TrimtabError(
                f"{argument}: {most} is there {count} times: name it once, and sweep over "
                "seed=0,1 to measure it again"
            )
    elif (
        key in _groups(command)
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


def _require_truth(override: Override, key: str) -> None:
    """Refuse a number for true, which OmegaConf makes of any but zero."""
    place, _, name = re.sub(r"^methods?\.", "", key).rpartition(".")
    found = [owner(one, name) for one in ([place] if place else ["", *method_names()])]
    if not any(one and isinstance(defaults(one)[name], bool) for one in found):
        return
    for value in choices(override):
        if re.fullmatch(r"[+-]?\d+", value) and int(value) not in (0, 1):
            raise TrimtabError(f"{key}={value}: expected true or false")


def _groups(command: str) -> set[str]:
    """Return the groups of options that a command takes one of each from."""
    others = {"hydra", "sweeps"} | ({"method"} if command == "evaluate" else {"experiment"})
    return {path.name for path in config_folder().iterdir() if path.is_dir()} - others


def _meant(word: str, command: str) -> str:
    """Name the group that has an option of this name."""
    groups = sorted(_groups(command), key=lambda one: (one != "method", one != "methods", one))
    group = next((one for one in groups if word in group_options(one)), None)
    return f", did you mean {group}={word}?" if group else ""


def _require_read(key: str) -> None:
    """Refuse what is added to Hydra's own settings where nothing reads it."""
    first, *rest = key.split(".")
    kind: Any = HydraConf
    for place, name in enumerate(rest if first == "hydra" else ()):
        if not is_dataclass(kind):  # a dictionary, or what a plugin reads
            return
        known = get_type_hints(kind)
        if name not in known:
            raise TrimtabError(
                f"unknown setting {key}{nearest(name, list(known))}; "
                f"{'.'.join(['hydra', *rest[:place]])} has: {', '.join(known)}"
            )
        kind = known[name]
