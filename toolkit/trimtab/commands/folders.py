"""A folder holds the files of one job, or of one sweep: what would mix with them is refused."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from os.path import normpath
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from trimtab.commands.messages import is_mistake, stop
from trimtab.commands.mode import require_asked
from trimtab.commands.same_settings import require_same
from trimtab.commands.started import of_job, of_sweep
from trimtab.commands.sweep import UNFINISHED, require_single, tries_all
from trimtab.errors import ConfigError
from trimtab.files import COMMAND, REPORT, RESULT, RESULTS, require_writable, write_json
from trimtab.progress import say
from trimtab.sweep_state import is_command, job_folders, read_json, read_whole


@contextmanager
def claimed(
    folder: Path, setting: str, *, below: bool = False, resume: bool = False
) -> Iterator[None]:
    """Keep other jobs out of `folder` for the time of the ``with``.

    The claim ends with its process, however that ends.

    Parameters
    ----------
    setting : str
        Full name of the setting that the folder comes from.
    below : bool
        Whether folders below count too: results in them, and jobs that have none yet.
    resume : bool
        Whether what the folder holds is to be gone on with, unless it is a job's whole result.

    Raises
    ------
    ConfigError
        If another job is at it, or has left its result or error; if there is a report already, of a
        sweep or of somebody else; or, with `below`, if a job was started in a folder below.
    """
    require_writable(setting, folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, setting)
        if found := _refused(folder, below, resume):
            raise ConfigError(
                setting, folder, f"holds another job's {found.relative_to(folder)}: name a "
                "new folder, or remove this one"
            )  # fmt: skip
        yield
    finally:
        os.close(descriptor)


def withdraw(folder: Path, record: str | None) -> None:
    """Remove what is in a job's folder before the job begins, and the folder if it is empty then.

    So are folders above it that are left empty in the current one.

    Parameters
    ----------
    record : str or None
        Where in the folder Hydra writes what a job was composed of.
    """
    (folder / COMMAND).unlink(missing_ok=True)
    places = [folder]
    if record is not None:
        places.insert(0, folder / record)
        for name in ("config", "hydra", "overrides"):
            (folder / record / f"{name}.yaml").unlink(missing_ok=True)
    above = [one for one in folder.absolute().parents if one.is_relative_to(Path.cwd())]
    for place in [*places, *above[:-1]]:  # the current folder is the last
        with suppress(OSError):
            place.rmdir()


def _refused(folder: Path, below: bool, resume: bool) -> Path | None:
    """Return what is there already and may not be."""
    if resume:
        result = folder / RESULT
        return None if below or read_whole(result) is None else result
    patterns = [f"**/{name}" if below else name for name in RESULTS]
    started = [f"*/**/{COMMAND}"] if below else []  # its result is to come
    return next((path for one in [*patterns, REPORT, *started] for path in folder.glob(one)), None)


def _lock(descriptor: int, folder: Path, setting: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        reason = "another job is running in it: name another folder"
        raise ConfigError(setting, folder, reason) from error
    except OSError:  # a file system that locks no folders: finished jobs are seen all the same
        pass


def is_running(folder: Path) -> bool:
    """Return whether a process claims the folder, where its file system can tell."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


class ClaimSweep(Callback):
    """Refuses a sweep, or its folder, before Hydra writes into it; it stays claimed until the end.

    What was typed is kept in the folder, for who resumes.

    Parameters
    ----------
    resume : bool
        Whether the folder is gone on with.
    """

    def __init__(self, resume: bool = False) -> None:
        self._resume = resume
        self._held = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """Leave claims to this process: a launcher may send callbacks to others."""
        return {"_resume": self._resume, "_held": ExitStack()}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim a sweep's folder, once all its jobs are known to be sound."""
        with _refusals():
            require_asked(config.hydra)
            require_single(config.hydra)
            command = {} if self._resume else of_sweep(config)
            self._claim(config, "hydra.sweep.dir", command, sweep=True)
            if tries_all(config.hydra):  # the jobs that were checked, and no others
                config.hydra.sweeper._target_ = UNFINISHED

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that nobody means; a single job may share its folder with others."""
        with _refusals():
            _folder(config, "hydra.run.dir")

    def _claim(
        self, config: DictConfig, setting: str, command: dict[str, Any], *, sweep: bool = False
    ) -> None:
        folder = _folder(config, setting)
        own = config.hydra.output_subdir
        if own is not None and normpath(own).split("/")[0] == REPORT:
            reason = "is where the report goes: leave it out, or name another folder"
            raise ConfigError("hydra.output_subdir", own, reason)
        if self._resume:
            require_same(config, folder, job_folders(folder) if sweep else [folder])
        place = folder.resolve()
        _require_apart(folder, setting, place.parents if sweep else [place, *place.parents])
        self._held.enter_context(claimed(folder, setting, below=sweep, resume=self._resume))
        if self._resume:
            (folder / COMMAND).touch()  # tells what has ended since from what had before
        else:
            write_json(folder / COMMAND, command)


class Claim(ClaimSweep):
    """Refuses the folder of a single job, too, and says where a sweep's results are going."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim a sweep's folder, and name it."""
        super().on_multirun_start(config, **kwargs)
        say(f"Folder: {Path(config.hydra.sweep.dir).absolute()}")

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a job's folder; the job itself claims it."""
        with _refusals():
            self._claim(config, "hydra.run.dir", {} if self._resume else of_job(config))
        self._held.close()


@contextmanager
def _refusals() -> Iterator[None]:
    """End the process where something is refused: Hydra makes a warning of it."""
    try:
        yield
    except Exception as error:
        if not is_mistake(error):
            raise
        stop(error)


def _folder(config: DictConfig, setting: str) -> Path:
    """Return the folder that a setting of Hydra's names."""
    name = OmegaConf.select(config, setting)
    if not str(name or "").strip():  # a path of nothing is the current folder
        raise ConfigError(
            setting, name or "", "expected a folder, not empty: leave it out for ours"
        )
    folder = Path(name)
    if folder.parts[:1] == ("~",):
        reason = "a file's ~ is no home folder to Hydra: write ${oc.env:HOME} for it"
        raise ConfigError(setting, folder, reason)
    return folder


def _require_apart(folder: Path, setting: str, places: Iterable[Path]) -> None:
    """Refuse a folder where one of the places is a sweep's: its report would have the result."""
    for place in places:
        file = place / COMMAND
        content = read_json(file) if file.is_file() else {}
        if is_command(content) and content.get("sweeper"):
            reason = f"the sweep in {place} has its own jobs there: name a folder outside of it"
            raise ConfigError(setting, folder, reason)
