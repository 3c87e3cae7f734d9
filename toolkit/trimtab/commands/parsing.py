"""What Hydra's grammar makes of one argument of the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from warnings import catch_warnings

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigSource

from trimtab.registry import config_folder

# All that argparse takes for --multirun: it may be cut short.
MULTIRUN = ("-m", *("--multirun"[:letters] for letters in range(len("--m"), len("--multirun") + 1)))


def key_of(argument: str) -> str | None:
    """Return the key of ``key=value``, without plus signs; None for any other argument."""
    match = re.match(r"\+{0,2}([A-Za-z_][\w.]*)=", argument)
    return match[1] if match else None


def full_key(override: Override) -> str:
    """Return the key of an override, its package with it, without plus signs."""
    return override.get_key_element().lstrip("+")


def groups_of(command: str) -> set[str]:
    """Return the groups of options that a command takes one of each from."""
    others = {"hydra", "sweeps"} | ({"method"} if command == "evaluate" else {"experiment"})
    return {path.name for path in config_folder().iterdir() if path.is_dir()} - others


def loader_of(arguments: list[str]) -> ConfigLoaderImpl:
    """Return what lists the options of groups before Hydra starts: ours, those of --config-dir."""
    known, _ = get_args_parser().parse_known_args(arguments)
    search_path = create_config_search_path(str(config_folder()))
    if known.config_dir is not None:
        place, schemas = f"file://{os.path.abspath(known.config_dir)}", SearchPathQuery("schema")
        search_path.prepend("command-line", place, schemas)
    return ConfigLoaderImpl(search_path)


def sources_of(arguments: list[str], command: str) -> list[ConfigSource]:
    """Return where Hydra will read options: as `loader_of`, and from hydra.searchpath.

    Raises
    ------
    hydra.errors.HydraException
        If its grammar cannot read an argument, or hydra.searchpath is no list of texts.
    """
    known, _ = get_args_parser().parse_known_args(arguments)
    load = loader_of(arguments)._parse_overrides_and_create_caching_repo
    with catch_warnings(action="ignore"):  # of what is not there
        _, found = load(known.config_name or command, known.overrides)
    return list(found.get_sources())


def parsed(overrides: Iterable[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return the overrides as Hydra reads them.

    Parameters
    ----------
    loader : ConfigLoader, optional
        Lists the options that a pattern may match; by default Hydra's, once it has started.

    Raises
    ------
    hydra.errors.HydraException
        If its grammar cannot read one.
    """
    hydra = GlobalHydra.instance()
    if loader is None and hydra.is_initialized():
        loader = hydra.config_loader()
    return list(OverridesParser.create(loader).parse_overrides(list(overrides)))


def choices(override: Override) -> list[str]:
    """Return the values of an override: of one that does not sweep, its only one."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [str(override.get_value_element_as_str())]
