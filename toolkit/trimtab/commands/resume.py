"""``resume=DIR``: the arguments that go on with a sweep, or with one job, where it stopped."""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from trimtab.commands.folders import is_running
from trimtab.commands.parsing import MULTIRUN, key_of, parsed
from trimtab.commands.sweep import BASIC, SEARCH
from trimtab.errors import ConfigError, TrimtabError
from trimtab.files import COMMAND
from trimtab.progress import answer, may_go_unread, say
from trimtab.sweep_state import is_command, is_finished, job_folders, read_json

RESUME = "resume"
BY_ITSELF = "a calibration goes on by itself when the same command is typed again"


def to_resume(arguments: list[str], command: str) -> Path | None:
    """Return the folder that ``resume=DIR`` names; None where it is not among the arguments.

    Raises
    ------
    TrimtabError
        If other arguments are beside it that it would not heed, or the command has nothing to
        resume.
    """
    given = [one for one in arguments if key_of(one) == RESUME]
    if not given:
        return None
    if command != "evaluate":
        raise TrimtabError(f"{given[0]}: {BY_ITSELF}")
    kept = [*MULTIRUN, given[0]]
    if others := [one for one in arguments if one not in kept and not _is_tracking(one)]:
        raise TrimtabError(
            f"{given[0]}: goes on with the settings it was started with: leave out "
            f"{' '.join(others)}; only tracking.mode and others of tracking may differ"
        )
    folder = given[0].partition("=")[2]
    if not folder.strip():
        raise TrimtabError(f"{given[0]}: expected the folder of a sweep or a job of evaluate.py")
    return Path(expanduser(folder))


def _is_tracking(argument: str) -> bool:
    """Return whether an argument is one setting of tracking."""
    tracking = (key_of(argument) or "").startswith("tracking.")
    return tracking and not parsed([argument])[0].is_sweep_override()


def unfinished(folder: Path, arguments: list[str]) -> list[str]:
    """Return the arguments that run those jobs below `folder` that have no result; none if all do.

    Parameters
    ----------
    folder : Path
        Of a sweep, or of a job.
    arguments : list of str
        What is typed beside ``resume``.

    Raises
    ------
    ConfigError
        If nothing was started in `folder`, it still runs, or was started elsewhere.
    """
    started = _started(folder)
    if started.get("command") == "calibrate":
        raise ConfigError(RESUME, folder, f"is of calibrate.py: {BY_ITSELF}")
    if started.get("sweeper") not in (None, BASIC, SEARCH):
        raise ConfigError(RESUME, folder, f"is of {started['sweeper']}, which cannot be resumed")
    if is_running(folder):
        raise ConfigError(RESUME, folder, "is still running: wait until it has ended")
    here = Path.cwd()
    if started["folder"] != str(here) and Path(started["folder"]).is_dir():
        reason = f"its paths are from {started['folder']}, where it was started: resume it there"
        raise ConfigError(RESUME, folder, reason)
    if all(map(is_finished, job_folders(folder) if started.get("sweeper") else [folder])):
        return []
    place = QuotedString(str(folder), Quote.single).with_quotes()
    ours = ["hydra.callbacks.folder.resume=true", *filter(_is_tracking, arguments)]
    sweeper = started.get("sweeper")
    ours.append(f"hydra.{'sweep' if sweeper else 'run'}.dir={place}")
    return _with(ours, started["arguments"])


def finished(folder: Path) -> None:
    """Say that nothing is left to run, rebuild the report and print its path."""
    from trimtab.report import build_report

    say(f"Nothing to run: every job of {folder} is finished")
    with may_go_unread():
        answer(str(build_report(folder)))


def _started(folder: Path) -> dict[str, Any]:
    """Return what was typed."""
    path = folder / COMMAND
    if not folder.is_dir():
        raise ConfigError(RESUME, folder, "there is no such folder")
    if not path.is_file():
        expected = "the folder of a sweep or a job of evaluate.py"
        if (folder.parent / COMMAND).is_file():
            expected = f"the sweep's, {RESUME}={folder.parent}"
        raise ConfigError(RESUME, folder, f"holds no {COMMAND}: expected {expected}")
    content = read_json(path)
    if not _is_command(content):
        raise ConfigError(RESUME, folder, f"{COMMAND} is damaged: start the sweep again")
    return dict(content)


def _is_command(content: Any) -> bool:
    """Return whether a file's content is what `trimtab.commands.folders` writes, and can be run."""
    if not is_command(content):
        return False
    started = content.get("started") or {}
    try:
        for overrides in started.values():
            parsed(overrides)
    except HydraException:
        return False
    return content.get("sweeper") != BASIC or bool(started)


def _with(ours: list[str], arguments: list[str]) -> list[str]:
    """Return the arguments with these overrides instead of those of the same keys.

    They stand before the first override: argparse wants all in one place, and options may follow.
    """
    keys = {key_of(one) for one in ours}
    kept = [one for one in arguments if key_of(one) is None or key_of(one) not in keys]
    first = next((n for n, one in enumerate(kept) if key_of(one) is not None), len(kept))
    return [*kept[:first], *ours, *kept[first:]]
