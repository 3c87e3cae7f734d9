"""Arguments of the command line that can mean nothing, each refused with what to write instead."""

from __future__ import annotations

import re
import sys
from codecs import BOM_UTF8
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import chain
from os.path import expanduser
from pathlib import Path
from typing import Any, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf

from trimtab.commands.parsing import MULTIRUN, groups_of, key_of, sources_of
from trimtab.errors import ConfigError, TrimtabError, nearest
from trimtab.registry import COMMANDS, SECTIONS, config_folder, group_options

SEARCHPATH = "hydra.searchpath"

# No float is as large, and Python reads no number of some thousand digits.
TOO_LONG = re.compile(r"(?<![\w.])\d[\d_]{308,}(?![\w.])")

MEMBER = re.compile(r"[+~]*/?methods?@")  # an option in a stack, as files name it

HEADER = 512  # of a file's letters, in which Hydra looks for its header


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
    if "/" in name:
        folder, _, option = name.rpartition("/")
        raise TrimtabError(
            f"--config-name {known.config_name}: is a path: write --config-dir {folder or '/'} "
            f"--config-name {option}"
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


def from_here(folder: Path, here: Path) -> Path:
    """Return a folder as it is typed: from the current one where it is below it."""
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def require_sources(arguments: list[str], command: str) -> None:
    """Refuse a folder of hydra.searchpath that is none, and an option's file with a hidden header.

    A byte-order mark hides it from Hydra.

    Raises
    ------
    TrimtabError
    """
    groups = [path.name for path in config_folder().iterdir() if path.is_dir()]
    for source in sources_of(arguments, command):
        place = f"{source.scheme()}://"
        if source.provider.startswith(SEARCHPATH) and not source.available():
            home = expanduser(source.path)
            write = "" if home == source.path else f": write {place}{home}"
            expected = f"expected a folder or package that is there{write}"
            raise ConfigError(SEARCHPATH, place + source.path, expected)
        folder = from_here(Path(source.path), Path.cwd())
        inner = (Path(folder, group).rglob("*.yaml") for group in groups)
        for path in chain(folder.glob("*.yaml"), *inner) if place == "file://" else ():
            with suppress(OSError), path.open("rb") as file:  # Hydra says what it cannot read
                head = file.read(HEADER)
                if head.startswith(BOM_UTF8) and b"@package" in head:
                    raise TrimtabError(
                        f"{path}: begins with a byte-order mark, which hides its # @package from "
                        "Hydra: save it as UTF-8 without it"
                    )


def require_readable(argument: str, command: str) -> None:
    """Refuse what is added and nothing reads, one method of a stack, and hundreds of digits.

    Raises
    ------
    TrimtabError
    """
    if number := TOO_LONG.search(argument):
        raise TrimtabError(
            f"{argument:.60}...: expected a number of less than 300 digits, not {len(number[0])}"
        )
    if MEMBER.match(argument):
        raise TrimtabError(
            f"{argument}: a stack is named as a whole, as in 'methods=[larosa,vattention]'"
        )
    if not argument.startswith("+"):
        return
    key = key_of(argument) or ""
    if key in groups_of(command):
        write = f"write {argument.lstrip('+')}"
        if key == "methods":
            write += ", and several methods as one stack: 'methods=[larosa,vattention]'"
        raise TrimtabError(f"{argument}: {key} has one value, nothing is added: {write}")
    _require_read(key)


def require_kept(argument: str, command: str) -> None:
    """Refuse to take out a setting or a section: its defaults would be in its place.

    Raises
    ------
    TrimtabError
    """
    key = argument.partition("=")[0].removeprefix("~")
    known = {one.name for one in fields(COMMANDS[command])} - {"method", "methods"}
    if not argument.startswith("~") or key not in known:
        return
    fix = f"leave {key} out for its default"
    if key == "metrics":
        fix = "take one of them out with ~metrics.NAME"
    elif key == "tracking":
        fix = "write tracking.mode=disabled"
    elif key in SECTIONS:
        fix = f"leave {key} out for its defaults; what is measured is taken out with ~metrics.NAME"
    raise TrimtabError(f"{argument}: is not taken out as a whole: {fix}")


def _meant(word: str, command: str) -> str:
    """Name the group that has an option of this name."""
    groups = sorted(groups_of(command), key=lambda one: (one != "method", one != "methods", one))
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
