"""Opening and closing a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from os.path import expanduser
from pathlib import Path
from shlex import quote

import wandb
from wandb.env import get_cache_dir, get_data_dir

from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import ConfigError, TrimtabError, first_line, on_one_line
from trimtab.files import require_writable
from trimtab.progress import say
from trimtab.settings import path_of
from trimtab.tracking.job import Job, Record
from trimtab.tracking.log import Log
from trimtab.wandb_variables import (
    disabled_by,
    folder_setting,
    require_readable,
    settings_files,
)

LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes


def check(config: TrackingConfig) -> None:
    """Refuse folders that `run` could not write, before there is work to lose.

    W&B gathers tables in a folder of its own, and logs in another what it does.

    Raises
    ------
    TrimtabError
        If one cannot be written, or there is no home folder, which they are in by default; or if
        W&B could not read a file of its own, or refuses one of its variables.
    """
    if config.mode is TrackingMode.disabled:
        return
    require_readable()
    with _at_home():
        _require_accepted(config)
        require_writable(folder_setting(config.folder), config.folder)
        require_writable("WANDB_DATA_DIR", path_of(get_data_dir()))
        require_writable("WANDB_CACHE_DIR", path_of(get_cache_dir()))


def _require_accepted(config: TrackingConfig) -> None:
    """Have W&B read its settings files and its variables, as it does when a run begins."""
    settings = wandb.Settings()
    try:
        settings.update_from_system_settings()
    except ValueError as error:
        files = " and ".join(map(str, filter(Path.is_file, settings_files())))
        raise TrimtabError(f"W&B cannot read {files}: {_shortened(error)}") from error
    try:
        settings.update_from_env_vars(dict(os.environ))
    except wandb.Error as error:
        raise _refusal(config, str(error).rstrip(".")) from error
    except ValueError as error:
        raise _refused_variable(error) from error


def _refused_variable(error: ValueError) -> TrimtabError:
    return TrimtabError(f"W&B refuses one of its variables, WANDB_...: {_shortened(error)}")


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _at_home() -> Iterator[None]:
    """Have HOME name the user's home folder, where it is unset or empty.

    W&B starts a program that knows the folder from this variable alone.
    """
    given = os.environ.get("HOME")
    if given:
        yield
        return
    os.environ.pop("HOME", None)
    try:
        if (home := expanduser("~")) == "~":
            raise TrimtabError(
                f"HOME is not set, and the user {os.getuid()} has no home folder, which W&B needs: "
                "set HOME to a folder, or write tracking.mode=disabled"
            )
        os.environ["HOME"] = home
        yield
    finally:
        os.environ.pop("HOME", None)
        if given is not None:
            os.environ["HOME"] = given


@contextmanager
def run(
    config: TrackingConfig, job: Job, explain: Callable[[BaseException], str] = str
) -> Iterator[Log]:
    """Keep a log of a job for the time of the ``with``; its run opens with `Log.begin`.

    The run is finished whatever happens. What cannot be written to it is a warning, as the job does
    not depend on it. Where the job fails, the summary says why, as error.json does: ``status``,
    ``type`` and ``message``.

    Parameters
    ----------
    explain : callable
        Returns the message of an exception.

    Raises
    ------
    ConfigError
        If a folder cannot be written; on `Log.begin`, if Weights & Biases refuses the run.
    TrimtabError
        If it refuses a variable of its own, or one names the run of a whole sweep; or if there is
        no home folder.
    """
    for name in [one for one in os.environ if one.startswith("WANDB_") and not os.environ[one]]:
        del os.environ[name]  # W&B takes an empty variable for a value, and refuses it
    if tags := os.environ.pop("WANDB_TAGS", "").strip(", "):  # an empty tag likewise
        os.environ["WANDB_TAGS"] = ",".join(filter(str.strip, tags.split(",")))
    if config.mode is TrackingMode.disabled:
        if variable := disabled_by():
            say(f"No W&B run is kept: {variable}")
        yield Log(None)
        return
    check(config)
    if given := os.environ.pop("WANDB_JOB_TYPE", ""):
        say(f"WANDB_JOB_TYPE={given} is not read: Reports find a job's run by the type {job.kind}")
    if job.group is not None and (one := os.environ.get("WANDB_RUN_ID")):
        raise TrimtabError(
            f"WANDB_RUN_ID={one}: names one run, and the jobs of a sweep have one each: leave out "
            "-m, as under `wandb agent`, or unset it"
        )
    log = Log(partial(_opened, config, job))
    with _at_home():
        try:
            yield log
        except BaseException as error:
            log.fail(type(error).__name__, explain(error))
            raise
        finally:
            directory = log.finish()
            if log.failure is not None:
                say(f"Warning: the W&B run is incomplete: {_told(config, log.failure)}")
            elif directory and config.mode is TrackingMode.offline:
                say(f"W&B run kept offline; upload it with: wandb sync {_argument(directory)}")


def _opened(config: TrackingConfig, job: Job, tags: tuple[str, ...]) -> wandb.Run:
    """Open a run; what W&B's variables say of its id, name, group and tags comes first."""
    folder = path_of(config.folder)
    given = os.environ.get("WANDB_TAGS", "")
    every = [*tags, *job.tags, *filter(None, given.split(","))]
    earlier = None if job.folder is None else Record.read(job.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = wandb.init(
            mode=config.mode.value,
            project=config.project,
            entity=config.entity,
            dir=str(folder),
            # Without `resume` W&B drops what an earlier run of this id has logged.
            id=os.environ.get("WANDB_RUN_ID") or (earlier.id if earlier else None),
            name=os.environ.get("WANDB_NAME", job.name)[:LONGEST_NAME],
            group=os.environ.get("WANDB_RUN_GROUP", job.group),
            job_type=job.kind,
            tags=list(dict.fromkeys(tag[:LONGEST_TAG] for tag in every)),
            config=job.config,
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise _refusal(config, str(error).rstrip(".")) from error
    except OSError as error:
        raise TrimtabError(_told(config, error)) from error
    except ValueError as error:  # the settings above are checked
        raise _refused_variable(error) from error
    if job.folder is not None:
        _record(opened, config).write(job.folder)
    return opened


def _record(opened: wandb.Run, config: TrackingConfig) -> Record:
    return Record(
        id=opened.id,
        mode=config.mode.value,
        project=opened.project,
        entity=opened.entity or config.entity,
        group=opened.group or None,
        folder=str(path_of(config.folder).resolve()),
        directory=str(Path(opened.dir).parent.resolve()),
    )


def _argument(path: Path) -> str:
    """Return a path as it is typed for a command."""
    return quote(f"./{path}" if str(path).startswith("-") else str(path))


def _told(config: TrackingConfig, error: Exception) -> str:
    """Say why a run cannot be written; where it is, if it is for its disk."""
    if isinstance(error, TrimtabError):
        return str(error)
    if not isinstance(error, OSError) or not error.strerror:
        return f"{type(error).__name__}: {first_line(error)}"
    reason = on_one_line(error) if error.filename else error.strerror
    where = f"{folder_setting(config.folder)}={config.folder}"
    return f"{where}: {reason}; make room there, or name another folder"


def _refusal(config: TrackingConfig, reason: str) -> ConfigError:
    if reason.startswith("Run ID"):
        return ConfigError("WANDB_RUN_ID", os.environ.get("WANDB_RUN_ID"), reason)
    if reason.startswith("Invalid project name"):
        return ConfigError("tracking.project", config.project, reason)
    online = config.mode is TrackingMode.online
    advice = "run `wandb login`, or use tracking.mode=offline" if online else "or disable tracking"
    return ConfigError("tracking.mode", config.mode.value, f"{reason}; {advice}")
