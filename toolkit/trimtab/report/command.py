"""The command that measures a job's stack, or a part of it, with the job's settings."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.report.from_files import from_files
from trimtab.report.job import Job
from trimtab.report.labels import overrides, typed
from trimtab.retyped import retyped


def command(
    job: Job, methods: Sequence[str], *more: str, without: Sequence[str] = ()
) -> str | None:
    """Return the command that measures these methods of a job's stack with its settings.

    None where the job was measured from Python, and its result does not have its settings.

    Parameters
    ----------
    more : str
        Overrides that are added.
    without : sequence of str
        Overrides that are left out.
    """
    if not typed(job):
        return None
    kept = [one for one in overrides(job) if belongs(one, methods) and one not in without]
    stack = f"methods=[{','.join(methods)}]" if len(methods) > 1 else f"methods={''.join(methods)}"
    if tuple(methods) == job.methods:  # as it was called
        stack = next((one for one in overrides(job) if one.startswith("methods=")), stack)
    else:  # the option that set them for the whole is not named
        files = from_files(job, methods)
        more = (*(one for one in files if one.startswith("methods.")), *more)
    sweep, seeds = (["-m"], [f"seed={','.join(map(str, job.seeds))}"]) if job.seeds else ([], [])
    every = [*sweep, *kept, stack, *seeds, *more]
    return retyped(job.content, *every)


def belongs(override: str, methods: Sequence[str]) -> bool:
    """Return whether a setting is of one of these methods, or of none."""
    head, _, rest = override.partition("=")[0].partition(".")
    return head != "methods" or rest.partition(".")[0] in methods
