"""What was not measured and why, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from trimtab.report.attribution import missing, wholes
from trimtab.report.choice import Choice
from trimtab.report.figures import code, listed
from trimtab.report.job import Job
from trimtab.report.labels import overrides
from trimtab.report.verdict import FASTER, SLOWER, verdict

ASKED = {
    "quality": "quality.bits_per_byte",
    "the control of the timing": "speed.control",
    "serving many requests at once": "serving",
    "energy": "energy",
    "lm-eval tasks": "quality.tasks",
    "memory of the GPU": "memory.peak_device_bytes",
}
OWN = (
    "model=hub", "model.name=/path/of/your/model", "corpus=files",
    "corpus.glob=/path/of/your/texts",
)  # fmt: skip


def unmeasured(rows: Sequence[Job]) -> list[str]:
    """Return a sentence for each thing that was not measured, with the reason and the rows."""
    measured = [row for row in rows if row.ok]
    found: dict[tuple[str, str], list[Job]] = {}
    for row in measured:
        for name, field in ASKED.items():
            if row.get(field) is None:
                why = row.reason(field) or "the job left it out"
                found.setdefault((name, why), []).append(row)
    said = []
    for (name, why), those in found.items():
        alike = len(those) == len(measured)
        place = "" if alike else f" (in {listed([code(row.label) for row in those])})"
        said.append(f"{name}{place}: {why}")
    return said


def command(job: Job, methods: Sequence[str], *more: str, without: tuple[str, ...] = ()) -> str:
    """Return the command that measures these methods of a job's stack with its settings.

    Parameters
    ----------
    more : str
        Overrides that are added.
    without : tuple of str
        Groups whose overrides are left out.
    """
    kept = [
        one
        for one in overrides(job)
        if _belongs(one, methods) and one.partition("=")[0].partition(".")[0] not in without
    ]
    stack = methods[0] if len(methods) == 1 else f"[{','.join(methods)}]"
    return shlex.join(["python", "evaluate.py", *kept, f"methods={stack}", *more])


def _belongs(override: str, methods: Sequence[str]) -> bool:
    head, _, rest = override.partition("=")[0].partition(".")
    return head != "methods" or rest.partition(".")[0] in methods


def added(rows: Sequence[Job]) -> list[str]:
    """Return the commands that measure what the attribution lacks, each once."""
    return list(
        dict.fromkeys(command(row, part) for row in wholes(rows) for part in missing(row, rows))
    )


def next_steps(rows: Sequence[Job], found: Sequence[Choice]) -> list[str]:
    """Return what to do next, the most urgent first."""
    steps = []
    for root in dict.fromkeys(row.root for row in rows if not row.ok):
        steps.append(f"Run what failed again: {code(f'python evaluate.py resume={_typed(root)}')}")
    unsure = [
        row for row in rows
        if row.ok and row.methods and verdict(row, rows) not in (FASTER, SLOWER)
    ]  # fmt: skip
    if unsure:
        again = command(unsure[0], unsure[0].methods)
        steps.append(f"Measure {code(unsure[0].label)} again on a quiet machine: {code(again)}")
    best = next((choice.best for choice in found if choice.best is not None), None)
    if best is not None:
        own = command(best, best.methods, *OWN, without=("model", "corpus"))
        steps.append(f"Measure {code(best.label)} on your own model and text: {code(own)}")
    lacking = added(rows)
    if lacking:
        steps.append(f"Complete the attribution: {code(lacking[0])}")
    return steps


def _typed(root: Path) -> str:
    return shlex.quote(str(root.resolve()))
