"""What went wrong, in one line that says what was refused and what was expected."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import (
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)
from safetensors import SafetensorError

from trimtab.errors import FULL, TrimtabError, nearest, on_one_line
from trimtab.ranges import written
from trimtab.registry import (
    COMMANDS,
    SECTIONS,
    TARGETED,
    group_options,
    method_names,
    stack_members,
    targets,
)
from trimtab.settings import choice_meant, defaults, told

OF_A_FOLDER = {"model": "model=hub model.name", "corpus": "corpus=files corpus.glob"}
EXTRAS = {
    "joblib": "joblib",
    "ray": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
}
# What Hydra says of a file with a setting that its part of the configuration has not.
IN_FILE = re.compile(r"(?s)In '(?P<file>[^']+)': .*Key '[^']+' .*full_key: (?P<key>\S+)")
Mistake = (TrimtabError, HydraException, OmegaConfBaseException)


def is_mistake(error: Exception) -> bool:
    """Return whether the user can put it right; any other exception is a defect."""
    if isinstance(error, Mistake):  # some of Hydra's are system errors, too
        return True
    if isinstance(error, OSError):
        unnamed = error.errno in FULL or isinstance(error, FileNotFoundError)
        return error.filename is not None or unnamed
    return isinstance(error, SafetensorError) and "I/O error" in str(error)


def stop(error: BaseException) -> NoReturn:
    """Print one line on standard error and end the process with exit code 1."""
    print(f"{program()}: error: {one_line(error)}", file=sys.stderr)
    sys.exit(1)


def program() -> str:
    """Return what the user started."""
    return Path(sys.argv[0]).name


def one_line(error: BaseException) -> str:
    """Say in one line what was refused and what was expected instead."""
    if isinstance(error, TrimtabError) or (isinstance(error, OSError) and error.strerror):
        return on_one_line(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_option(error.missing_cfg_file, error.options)
    if several := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", str(error)):
        key, values = several.groups()
        one = f"; one value with a comma is '{key}=\"{values}\"'"
        if key == "methods":
            one = f"; one stack of them is '{key}=[{values}]'" if _makes_a_stack(values) else ""
        return f"{key}={values}: a sweep over these needs -m{one}"
    if twice := re.match(r"schema/method@methods\.(\w+) appears more than once", str(error)):
        return _named_twice(twice[1])
    if absent := re.match(r"Could not delete (?:from config\. )?'([^']+)'", str(error)):
        return f"~{absent[1]}: there is nothing of this name to take out"
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    origin: BaseException | None = cause
    while isinstance(origin, InterpolationResolutionError):  # OmegaConf drops the cause
        origin = origin.__context__
    if isinstance(origin, TrimtabError):
        return one_line(origin)
    if unset := re.search(r"Environment variable '([^']+)' not found", str(cause)):
        return f"${{oc.env:{unset[1]}}}: {unset[1]} is not set: set it, or write a value without it"
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _describe(cause)
    if unknown := re.match(r"Interpolation key '([^']+)' not found", str(cause)):
        return f"${{{unknown[1]}}} names no setting: write a value without it"
    if composing := IN_FILE.match(str(error)):
        return _of_file(**composing.groupdict())
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _of_file(file: str, key: str) -> str:
    """Say what a file sets that there is not, by the full name of the setting."""
    if key == file.partition("/")[0]:
        return f"{file}: begin the file with # @package _global_"
    place, _, name = key.rpartition(".")
    kinds: list[Any] = [*COMMANDS.values(), *SECTIONS.values()]
    known = list(
        dict.fromkeys(one for kind in kinds if kind.place == place for one in defaults(kind))
    )
    method = not place and name in method_names()
    hint = f", write methods.{name}" if method else meant(name, known, place)
    return f"{file}: unknown setting {key}{hint}"


def _no_such_option(missing: str, options: Sequence[str] | None) -> str:
    nested = missing.startswith("hydra/")
    group, slash, option = missing.rpartition("/") if nested else missing.partition("/")
    if group == "hydra/launcher" and option in EXTRAS:
        return f"{group}={option}: is not installed: pip install 'trimtab[{EXTRAS[option]}]'"
    if not slash:
        group, option = "", missing
    if "/" in option and group in OF_A_FOLDER:
        write = f"{OF_A_FOLDER[group]}={option}"
        return f"{group}={option}: no such option; for a folder of yours write {write}"
    if group == "method" and option in group_options("methods") and stack_members(option):
        return f"{group}={option}: is a stack, write methods={option}"
    options = options or group_options(group)  # Hydra lists none for a list's member
    key = f"{group}={option}" if group else f"--config-name={option}"
    return f"{key}: no such option{nearest(option, options)}; there are: {', '.join(options)}"


def _describe(error: OmegaConfBaseException) -> str:
    first = (error.msg or str(error)).splitlines()[0]
    if not re.match(r"Key '.*' (is not in struct|not in)", first):
        if first.endswith("does not support deletion"):
            return f"~{error.full_key}: a setting is not taken out: leave it out for its default"
        if unknown := re.match(r"Interpolation key '(.*)' not found", first):
            text = "${" + unknown[1] + "}"
            return f"{error.full_key}: {text} names no setting: write a value without it"
        if error.full_key == "metrics":
            return "metrics: they are not set as a whole: take one out with ~metrics.NAME"
        if error.full_key in SECTIONS:
            write = f"write {error.full_key}.SETTING=VALUE"
            return f"{error.full_key}={written(error.value)}: expected one of its settings: {write}"
        place, _, name = re.sub(r"\[\d+\]$", "", str(error.full_key)).rpartition(".")
        mixed = first.startswith("Cannot merge ")  # a list and a dictionary
        if (mixed or isinstance(error, ValidationError)) and (kind := owner(place, name)):
            _, expected = told(kind, name)
            if mixed:
                return f"{error.full_key}: expected {expected}"
            expected += choice_meant(kind, name, error.value)
            return f"{error.full_key}={written(error.value)}: expected {expected}"
        if mixed:
            return f"{error.full_key}: expected one of its settings: write SETTING=VALUE after it"
        if first.startswith("Missing mandatory value"):
            return f"{error.full_key} has no value: write {error.full_key}=VALUE"
        if first.endswith("is not Optional"):
            return f"{error.full_key}=null: expected a value"
        return f"{error.full_key}: {first}"
    place, _, key = str(error.full_key).rpartition(".")
    siblings = [name for name in _keys(error.parent_node) if not name.startswith("_")]
    if place == "methods" and key in method_names():
        stack = f"'methods=[{','.join([*siblings, key])}]'" if siblings else f"methods={key}"
        return f"{error.full_key}: {key} is not in the stack, write {stack}"
    if place.startswith("hydra.") and not siblings:  # a dictionary
        return f"{error.full_key}: is not set yet, write +{error.full_key}=VALUE"
    if place in TARGETED and not siblings:
        return f"{error.full_key}: ~{place} takes out what has settings: leave it out"
    hint = meant(key, siblings, place) or _elsewhere(place, key)
    return (
        f"unknown setting {error.full_key}{hint}; {place or 'the top level'} has: "
        f"{', '.join(siblings)}"
    )


def owner(place: str, name: str) -> type | None:
    """Return a class that has a setting of this name, by where it stands: ``model``, ``larosa``."""
    kinds: list[Any] = [*COMMANDS.values(), *SECTIONS.values()]
    kinds += [kind for group in TARGETED for kind in targets(group).values()]
    return next((one for one in kinds if one.place == place and name in defaults(one)), None)


def owners(key: str) -> list[type]:
    """Return the classes that have a setting, by a key as it is typed: a method's by itself too."""
    place, _, name = re.sub(r"^methods?\.", "", key).rpartition(".")
    found = [owner(one, name) for one in ([place] if place else ["", *method_names()])]
    return [one for one in found if one is not None]


def _keys(node: Any) -> list[str]:
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def _elsewhere(group: str, key: str) -> str:
    """Name the options of a group that do have a setting, where the chosen one has not."""
    if group not in TARGETED:
        return ""
    owners = (option for option, kind in targets(group).items() if key in defaults(kind))
    options = [f"{group}={option}" for option in owners]
    return f", it belongs to {' and '.join(options)}" if options else ""


def _makes_a_stack(values: str) -> bool:
    """Return whether options of methods hold a method each, and none twice."""
    members = [stack_members(one.strip()) for one in values.split(",")]
    return all(members) and sum(map(len, members)) == len(set().union(*members))


def _named_twice(method: str) -> str:
    stacks = [name for name in group_options("methods") if method in stack_members(name)]
    stacks.remove(method)
    held = f" ({' and '.join(stacks)} {'contains' if len(stacks) == 1 else 'contain'} it)"
    return f"methods: {method} is named twice{held if stacks else ''}: name it once"


def meant(key: str, known: Sequence[str], place: str) -> str:
    """Return a hint at the setting that was probably meant: at the top level, one of a method."""
    own = [name for name, kind in targets("method").items() if key in defaults(kind)]
    if own and not place:
        return f", write {' or '.join(f'methods.{name}.{key}' for name in own)}"
    of_methods = (
        () if place else {name for kind in targets("method").values() for name in defaults(kind)}
    )
    return nearest(key, [*known, *sorted(of_methods)])
