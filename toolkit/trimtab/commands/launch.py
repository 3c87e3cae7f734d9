"""Run a Hydra task so that a user's mistake ends in one clear line and exit code 1."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from trimtab.errors import ConfigError, TrimtabError
from trimtab.registry import config_folder, group_options, method_names, register

Config = TypeVar("Config")
Mistake = (TrimtabError, HydraException, OmegaConfBaseException)
FULL = (errno.ENOSPC, errno.EDQUOT)  # writing to an open file, the error does not name it


def typed(config: DictConfig, kind: type[Config]) -> Config:
    """Return the composed configuration as its dataclass, every value present and in range.

    Raises
    ------
    TrimtabError
        For a value that is required and missing, or out of range.
    """
    for key in sorted(OmegaConf.missing_keys(config)):
        if key == "methods":  # has a default: only an empty choice leaves none
            raise TrimtabError("methods is empty: write methods=baseline for no method")
        raise ConfigError(key, "???", f"is required: write {key}=VALUE")
    value = OmegaConf.to_object(config)
    if not isinstance(value, kind):
        raise TypeError(f"the composed configuration is a {type(value)}, not a {kind}")
    return value


def launch(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Compose the configuration from the command line and run `task` on it, once or in a sweep.

    A `TrimtabError`, every refusal of Hydra or OmegaConf, and what the system refuses to do with
    a file, is printed as one line on standard error and ends the process with exit code 1;
    ``HYDRA_FULL_ERROR=1`` shows the traceback instead. Any other exception is a defect and keeps
    its traceback.
    """
    verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printer

    composed = False

    def guarded(config: DictConfig) -> None:
        nonlocal composed
        composed = True
        try:
            task(config)
        except Exception as error:
            # One job: stop here, before Hydra adds a line of its own. In a sweep Hydra has to
            # see the failure, so that it marks the job and goes on with the next.
            if verbose or not _is_mistake(error) or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _stop(error)

    register()
    entry = hydra.main(
        config_path=str(config_folder()), config_name=config_name, version_base="1.3"
    )(guarded)
    try:
        entry()
    except Exception as error:
        # Before the task has begun everything that fails is about the command line.
        if verbose or (composed and not _is_mistake(error)):
            raise
        _stop(error)
    except KeyboardInterrupt:
        print(f"{_program()}: interrupted", file=sys.stderr)
        sys.exit(130)


def expand_shorthand(arguments: list[str], root_keys: set[str], node: str) -> list[str]:
    """Prefix ``key=value`` with `node` where `key` is no key of the root configuration.

    So ``sparsity=0.4`` is read as ``method.sparsity=0.4``; a key that is neither is refused
    later, under that name.
    """

    def expand(argument: str) -> str:
        match = re.match(r"([A-Za-z_]\w*)=", argument)
        if match is None or match[1] in root_keys:
            return argument
        return f"{node}.{argument}"

    return [expand(argument) for argument in arguments]


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in FULL
    if isinstance(error, SafetensorError):
        return "I/O error" in str(error)
    return isinstance(error, Mistake)


def _stop(error: BaseException) -> None:
    print(f"{_program()}: error: {one_line(error)}", file=sys.stderr)
    sys.exit(1)


def _program() -> str:
    return Path(sys.argv[0]).name


def one_line(error: BaseException) -> str:
    """Say in one line what was refused and what was expected instead."""
    if isinstance(error, TrimtabError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = error.options or group_options(group)  # Hydra lists none for a list's member
        nearest = _nearest(option, options)
        return f"{group}={option}: no such option{nearest}; there are: {', '.join(options)}"
    if twice := re.match(r"method@methods\.(\w+) appears more than once", str(error)):
        return _named_twice(twice[1])
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _describe(cause)
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _describe(error: OmegaConfBaseException) -> str:
    first = (error.msg or str(error)).splitlines()[0]
    if not re.match(r"Key '.*' (is not in struct|not in)", first):
        return f"{error.full_key}: {first}"
    place, _, key = str(error.full_key).rpartition(".")
    siblings = [name for name in _keys(error.parent_node) if not name.startswith("_")]
    if place == "methods" and key in method_names():
        stack = f"'methods=[{','.join([*siblings, key])}]'" if siblings else f"methods={key}"
        return f"{error.full_key}: {key} is not in the stack, write {stack}"
    hint = _nearest(key, siblings) or _elsewhere(place, key)
    return (
        f"unknown setting {error.full_key}{hint}; {place or 'the top level'} has: "
        f"{', '.join(siblings)}"
    )


def _keys(node: Any) -> list[str]:
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def _elsewhere(group: str, key: str) -> str:
    """Name the options of a group that do have a setting, where the chosen one has not."""
    options = [
        f"{group}={path.stem}"
        for path in sorted((config_folder() / group).glob("*.yaml"))
        if group and key in _keys(OmegaConf.load(path))
    ]
    return f", it belongs to {' and '.join(options)}" if options else ""


def _named_twice(method: str) -> str:
    stacks = [
        path.stem
        for path in sorted((config_folder() / "methods").glob("*.yaml"))
        if f"/method@{method}:" in path.read_text("utf-8")
    ]
    held = f" ({' and '.join(stacks)} {'contains' if len(stacks) == 1 else 'contain'} it)"
    return f"methods: {method} is named twice{held if stacks else ''}: name it once"


def _nearest(word: str, candidates: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, candidates, n=1)
    return f", did you mean {close[0]}?" if close else ""


def output_folder() -> Path:
    """Return the folder of the job that is running."""
    return Path(HydraConfig.get().runtime.output_dir)
