"""What was not measured and why, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trimtab.report.attribution import missing, wholes
from trimtab.report.choice import Choice
from trimtab.report.command import belongs, command
from trimtab.report.figures import code, listed
from trimtab.report.from_files import OF_EVERY_MODEL, from_files
from trimtab.report.job import Job
from trimtab.report.labels import overrides, typed
from trimtab.report.lengths import DEMO, EXTENT, ROUNDS, shortening
from trimtab.report.notices import moved
from trimtab.report.refused import calibrations, corrections, is_refused
from trimtab.report.verdict import ALIKE, NOISY, verdict
from trimtab.retyped import options, retyped

ASKED = {
    "quality": "quality.bits_per_byte",
    "the control of the timing": "speed.control",
    "serving many requests together": "serving",
    "energy": "energy",
    "lm-eval tasks": "quality.tasks",
    "memory of the GPU": "memory.peak_device_bytes",
}
SHORTENED = "shortened the measurement"
SELDOM = "had it measured less often"
# What is measured, the groups that are a user's own, and what stands for them in a command.
OWN = (
    ("model", "model", ("hub",), ("model=hub", "model.name=/path/of/your/model")),
    ("text", "corpus", ("files", "hub"), ("corpus=files", "corpus.glob=/path/of/your/texts")),
)


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


def added(rows: Sequence[Job]) -> list[str]:
    """Return the commands that measure what the attribution lacks, each once."""
    told = (command(row, part) for row in wholes(rows) for part in missing(row, rows))
    return list(dict.fromkeys(one for one in told if one is not None))


def next_steps(rows: Sequence[Job], found: Sequence[Choice]) -> list[str]:
    """Return what to do next, the most urgent first."""
    steps = [*corrections(rows), *calibrations(rows)]
    for root in dict.fromkeys(row.root for row in rows if not (row.ok or is_refused(row))):
        steps.append(f"Run what failed again: {code(f'python evaluate.py resume={_typed(root)}')}")
    again = _again(rows)
    every = len(again) == sum(row.ok for row in rows)  # else the texts have to be the others'
    kinds, less = (EXTENT, SHORTENED) if every else (ROUNDS, SELDOM)
    for those, why, told in _together(again, kinds):
        labels = listed([code(row.label) for row in those])
        step = f"Measure {labels} again on a quiet machine, as {why}"
        steps.append(_with(step, told, less if shortening(overrides(those[0]), kinds) else ""))
    chosen = [choice.best for choice in found if choice.best is not None]
    tried = [row for row in rows if row.methods and row.random_weights]
    best = next(iter(chosen), max(tried, key=lambda row: len(row.methods), default=None))
    if best is not None:
        steps += _own(best)
    lacking = added(rows)
    if lacking:
        others = f" (the first of {len(lacking)} commands there)" if len(lacking) > 1 else ""
        what = f"what the table “What each method contributes” lacks{others}"
        steps.append(f"Measure {what}: {code(lacking[0])}")
    return steps


def joining(rows: Sequence[Job]) -> str:
    """Return how the result of a next step comes into the report."""
    roots = " ".join(_typed(root) for root in dict.fromkeys(row.root for row in rows))
    told = code(f"python -m trimtab.report {roots} FOLDER")
    return (
        f"A new job has a folder of its own: {told} puts it into one report with these rows. What "
        "is measured again stands beside the old row and does not replace it."
    )


def _own(best: Job) -> Iterator[str]:
    """Yield the step that measures a stack on what is still an example: the model, the text."""
    examples = [
        (what, group, paths) for what, group, options, paths in OWN
        if not any(f"{group}={option}" in overrides(best) for option in options)
    ]  # fmt: skip
    if examples:
        typed_by = [one for one in overrides(best) if one.startswith("experiment=")]
        files = from_files(best, best.methods) if typed_by not in ([], [DEMO]) else []
        short = shortening([*overrides(best), *files], EXTENT)
        groups = [group for _, group, _ in examples]
        other = [one for one in overrides(best) if _is_of(one, groups)]
        paths = [path for *_, these in examples for path in these]
        files = [one for one in files if one not in short]
        own = command(best, best.methods, *files, *paths, without=[*short, *other, *typed_by])
        step = f"Measure {code(best.label)} on your own {listed([what for what, *_ in examples])}"
        yield _with(step, own, SHORTENED if short else "")


def _is_of(override: str, groups: Sequence[str]) -> bool:
    """Return whether this is an option of one of the groups, or a setting that not all have."""
    key = override.partition("=")[0]
    return key.partition(".")[0] in groups and key not in OF_EVERY_MODEL


def _together(
    again: Sequence[tuple[Job, str]], kinds: tuple[str, ...]
) -> Iterator[tuple[list[Job], str, str | None]]:
    """Yield rows to measure again, why, and the command: one sweep where only stacks differ.

    The settings of these kinds that shortened the measurement are left out.
    """
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for row, why in again:
        aside = ("methods=", *shortening(overrides(row), kinds))
        others = [one for one in overrides(row) if not one.startswith(aside)]
        key = why, typed(row), options(row.content), row.seeds
        alike.setdefault((*key, *others), []).append(row)
    for (why, known, _, _, *others), those in alike.items():
        stacks = [one for row in those for one in overrides(row) if one.startswith("methods=")]
        if known and len(those) > 1 and len(stacks) == len(those) and not those[0].seeds:
            every = ",".join(one.removeprefix("methods=") for one in stacks)
            members = [name for row in those for name in row.methods]
            kept = [one for one in others if belongs(one, members)]
            told = retyped(those[0].content, "-m", *kept, f"methods={every}")
            yield those, why, told
        else:
            for row in those:
                short = shortening(overrides(row), kinds)
                yield [row], why, command(row, row.methods, without=short)


def _with(step: str, told: str | None, less: str) -> str:
    """Return a step with its command, and which settings are not in it; without one, the step."""
    if told is None:
        return step
    without = f", without the settings that {less}" if less else ""
    return f"{step}{without}: {code(told)}"


def _again(rows: Sequence[Job]) -> list[tuple[Job, str]]:
    """Return the rows that were disturbed and what shows it; else one whose speed is not clear."""
    measured = [row for row in rows if row.ok]
    disturbed = [(row, why) for row in measured if (why := _disturbed(row, rows))]
    unsure = (row for row in measured if row.methods and verdict(row, rows) == ALIKE)
    return disturbed or [(row, "no difference was found") for row in islice(unsure, 1)]


def _disturbed(row: Job, rows: Sequence[Job]) -> str:
    """Return what shows that the timing of a row was disturbed; empty where nothing does."""
    control = row.get("speed.control" if row.methods else "speed.speedup")
    if row.get("environment.load.busy"):
        return "the machine was busy"
    if control is not None and not control["low"] <= 1 <= control["high"]:
        return "its control, the unmodified model against itself, does not contain 1"
    if moved(row, rows):
        return "the unmodified model's speed beside it was another than in the other jobs"
    return "its speed is too noisy to tell" if verdict(row, rows) == NOISY else ""


def _typed(root: Path) -> str:
    return shlex.quote(str(root.resolve()))
