"""Values of the command line that are texts: as they are typed, but for the home folder."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from os.path import expanduser
from typing import Any, get_args, get_origin, get_type_hints

from hydra.conf import HydraConf
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from trimtab.commands.messages import owners
from trimtab.commands.parsing import key_of, parsed
from trimtab.errors import TrimtabError

# A text in quotes, or what stands between the commas and brackets of a sweep or a list.
PART = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?:\\.|[^\\'",()\[\]{}])+""")
NAME = re.compile(r"\s*(\w+)\s*:")  # of a value in a dictionary


def as_text(argument: str, sweep: bool) -> str:
    """Return an argument that Hydra reads as it is meant.

    A value that its grammar cannot read is quoted, and a number or a truth value that a text is
    asked for is, where another spelling would come of it. ``~/`` at the beginning of a value is
    the home folder.

    Raises
    ------
    TrimtabError
        If several values are swept over, and they cannot be read; or a list or a dictionary lacks a
        bracket.
    """
    if (key := key_of(argument)) is None:
        return argument
    name, _, value = argument.partition("=")
    if _at_home(value):
        value = expanduser(value)
    value = PART.sub(lambda part: _with_home(part[0], sweep), value)
    try:
        (override,) = parsed([f"{name}={value}"])
    except HydraException as error:
        if value.startswith("[") and any(get_origin(one) is list for one in _hints(key)):
            members = PART.sub(lambda part: _as_member(part[0]), value)
            if members != value:
                return as_text(f"{name}={members}", sweep)
        if not _takes_text(key):
            _require_pairs(argument, value)
        if sweep and "," in value:
            raise TrimtabError(
                f"{argument}: cannot be read as values to sweep over: quote each of them, as in "
                f'\'{name}="FIRST","SECOND"\''
            ) from error
        return f"{name}={_quoted(value)}"
    counted = override.is_range_sweep() or override.is_interval_sweep()
    return f"{name}={value if counted else as_typed(key, value)}"


def as_typed(key: str, value: str) -> str:
    """Return a value whose parts are in quotes where they would become texts that were not typed.

    What is asked for is the setting's, or, of a dictionary, that of each of its names.
    """
    setting = key

    def part(found: re.Match[str]) -> str:
        nonlocal setting
        name, text = "", found[0]
        if value.startswith("{") and (named := NAME.match(text)):
            setting, name, text = f"{key}.{named[1]}", named[0], text[named.end() :]
        return name + (_as_typed(text) if text and _takes_text(setting) else text)

    return PART.sub(part, value)


def _require_pairs(argument: str, value: str) -> None:
    """Refuse a value in which a bracket is without its other."""
    bare = PART.sub("", value)
    for pair in ("[]", "{}", "()"):
        more = bare.count(pair[0]) - bare.count(pair[1])
        if more:
            raise TrimtabError(f"{argument}: a {pair[more > 0]} is missing")


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def _at_home(text: str) -> bool:
    return text == "~" or text.startswith("~/")


def _with_home(part: str, sweep: bool) -> str:
    """Return a part of a value, the home folder in full if it is in quotes or in a sweep."""
    if part[0] in "'\"":
        text = str(_value(part))
        return _quoted(expanduser(text)) if _at_home(text) else part
    return expanduser(part.strip()) if sweep and _at_home(part.strip()) else part


def _as_member(part: str) -> str:
    """Return a member of a list, the home folder in full; in quotes if it cannot be read."""
    text = part.strip()
    text = expanduser(text) if _at_home(text) else text
    try:
        parsed([f"value={text}"])
    except HydraException:
        return _quoted(text)
    return text


def _as_typed(part: str) -> str:
    """Return a part of a value in quotes if it would become a text that was not typed."""
    value = _value(part)
    text = part.strip()
    spelled = isinstance(value, bool | int | float) and str(value) != text
    return _quoted(text) if spelled else part


def _value(part: str) -> Any:
    """Return what Hydra makes of a part of a value; the part where it cannot read it."""
    try:
        return parsed([f"value={part}"])[0].value()
    except HydraException:
        return part


def _takes_text(key: str) -> bool:
    """Return whether a setting, ours or Hydra's, is a text or holds texts."""
    return any(str in _kinds(hint) for hint in _hints(key))


def _hints(key: str) -> list[Any]:
    """Return the types of a setting: of a method's by itself, those of all methods."""
    first, *rest = key.split(".")
    if first == "hydra":
        return [_of_hydra(rest)]
    name = key.rpartition(".")[2]
    return [get_type_hints(one)[name] for one in owners(key)]


def _of_hydra(names: list[str]) -> Any:
    """Return the type of one of Hydra's own settings; None where it declares none."""
    kind: Any = HydraConf
    for name in names:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return kind


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) or (hint,)
