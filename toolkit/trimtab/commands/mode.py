"""A sweep is asked for by ``-m`` alone, and not by Hydra's own setting for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from trimtab.commands.parsing import MULTIRUN, choices, key_of, parsed
from trimtab.errors import TrimtabError

MODE = "hydra.mode"
FIX = "leave it out, and write -m for a sweep"


def require_no_mode(arguments: Iterable[str], loader: ConfigLoaderImpl) -> None:
    """Refuse the mode where it is typed, or set by an option that is typed.

    Raises
    ------
    TrimtabError
    """
    for one in arguments:
        key = key_of(one)
        if key == MODE:
            raise TrimtabError(f"{one}: {FIX}")
        if key is None or not loader.repository.group_exists(key):
            continue
        for option in choices(parsed([one], loader)[0]):
            if (mode := _mode(f"{key}/{option}", loader)) is not None:
                raise TrimtabError(f"{key}={option} sets {MODE}={mode}: {FIX}")


def require_asked(hydra: HydraConf) -> None:
    """Refuse a sweep that nobody typed ``-m`` for, as where an option of an option sets the mode.

    Raises
    ------
    TrimtabError
    """
    if hydra.mode == RunMode.MULTIRUN and not {*MULTIRUN} & {*sys.argv}:
        raise TrimtabError(f"{MODE}=MULTIRUN is set by a file: {FIX}")


def _mode(option: str, loader: ConfigLoaderImpl) -> str | None:
    """Return the mode that an option's file sets; of one that cannot be read Hydra says why."""
    with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException):
        found = loader.repository.load_config(option)
        mode = None if found is None else OmegaConf.select(found.config, MODE)
        return None if mode is None else str(mode)
    return None
