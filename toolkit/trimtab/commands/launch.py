"""Run a Hydra task so that a user's mistake ends in one clear line and exit code 1."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trimtab.commands.arguments import SEARCHPATH, from_here, require_sources, require_text
from trimtab.commands.messages import is_mistake, program, stop
from trimtab.commands.overrides import expand
from trimtab.commands.parsing import key_of
from trimtab.commands.resume import finished, to_resume, unfinished
from trimtab.commands.summary import summarised
from trimtab.commands.sweep import in_sweep, of_hydra, require_sweep
from trimtab.progress import may_go_unread, prepare_streams
from trimtab.registry import config_folder, register


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Compose the configuration from the command line and run `task` on it, once or in a sweep.

    A `TrimtabError`, every refusal of Hydra or OmegaConf, and what the system refuses to do with
    a file, is printed as one line on standard error and ends the process with exit code 1;
    ``HYDRA_FULL_ERROR=1`` shows the traceback instead. Any other exception is a defect and keeps
    its traceback.
    """
    prepare_streams()
    verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printer

    logging.raiseExceptions = False  # a log that nobody reads any more is no failure
    composed = False

    def guarded(config: DictConfig) -> Any:
        nonlocal composed
        composed = True
        register()  # a launcher may run this in a Python of its own
        try:
            require_sweep()
            return task(config)
        except Exception as error:
            # One job: stop here, before Hydra adds a line of its own. In a sweep Hydra has to
            # see the failure, so that it marks the job and goes on with the next.
            if verbose or not is_mistake(error) or in_sweep():
                raise
            stop(error)

    try:
        register()
        require_text(arguments := sys.argv[1:])
        if (folder := to_resume(arguments, config_name)) is None:
            sys.argv[1:] = expand(arguments, config_name)
        elif left := unfinished(folder, arguments):
            sys.argv[1:] = left
        else:
            return finished(folder)
    except Exception as error:
        if verbose or not is_mistake(error):
            raise
        stop(error)
    entry = hydra.main(
        config_path=str(config_folder()), config_name=config_name, version_base="1.3"
    )(guarded)
    try:
        require_sources(sys.argv[1:], config_name)
        with may_go_unread(), summarised():
            entry()
    except Exception as error:
        # Before the task has begun everything that fails is about the command line.
        if verbose or (composed and not is_mistake(error)):
            raise
        stop(error)
    except KeyboardInterrupt:
        print(f"{program()}: interrupted", file=sys.stderr)
        sys.exit(130)


def output_folder() -> Path:
    """Return the folder of the job that is running."""
    return Path(HydraConfig.get().runtime.output_dir)


def choices() -> dict[str, str]:
    """Return the option that the running job has of each configuration group, defaults included."""
    chosen = HydraConfig.get().runtime.choices
    ours = {str(group): option for group, option in chosen.items() if not {"/", "@"} & set(group)}
    return {group: str(option) for group, option in ours.items() if option is not None}


def sources(command: str) -> list[str]:
    """Return what was typed of where the running job's configuration is read beside ours.

    A folder is named from the current one where it is below it.
    """
    hydra = HydraConfig.get()
    found = []
    for one in hydra.runtime.config_sources:
        if one.provider == "command-line":
            place = from_here(Path(one.path), Path(hydra.runtime.cwd))
            found.append(f"--config-dir={place}")
    if hydra.job.config_name != command:
        found.append(f"--config-name={hydra.job.config_name}")
    return found + [one for one in of_hydra(hydra) if key_of(one) == SEARCHPATH]
