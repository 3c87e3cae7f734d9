"""What tells a row of a report from every other: settings, and facts where those are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from trimtab.ranges import written
from trimtab.report.job import Job

# Settings that change where a job's files go, and no figure.
ASIDE = ("tracking", "hydra", "artifacts", "on_missing")
NO_FIGURES = {"wandb"}  # a package that only records what was measured
FACTS: tuple[tuple[str, Callable[[Job], Any]], ...] = (
    ("seed", lambda job: job.seeds or job.get("environment.seed")),
    ("dtype", lambda job: job.get("model.dtype")),
    ("machine", lambda job: machine(job)),
    ("commit", lambda job: commit(job)),
)


def overrides(job: Job) -> list[str]:
    """Return what was typed for a job and may change a figure, without plus signs.

    Of a key that was typed several times it is the last. The seed of jobs that were averaged is
    left out.
    """
    given = [one.lstrip("+") for one in job.content.get("overrides", ())]
    last = {one.partition("=")[0]: one for one in given}
    aside = (*ASIDE, "seed") if job.seeds else ASIDE
    return [one for key, one in last.items() if key.partition(".")[0] not in aside]


def typed(job: Job) -> bool:
    """Return whether a result says what was typed for it; one that Python made does not."""
    return "overrides" in job.content


def settings(job: Job) -> list[str]:
    """Return every setting that a result was measured with; none of one that does not say."""
    return [f"{name}={written(value)}" for name, value in (job.get("settings") or {}).items()]


def machine(job: Job) -> str | None:
    """Return what a job ran on: the GPU, or the CPU and its threads; None for a failure."""
    environment = job.get("environment")
    if not environment:
        return None
    threads = environment["threads"]
    cpu = f"{environment['cpu']}, {threads} thread{'' if threads == 1 else 's'}"
    return str(environment["gpu"] or cpu) if on_gpu(job) else cpu


def on_gpu(job: Job) -> bool:
    """Return whether part of the model lay on a GPU; so does one of a job that does not say."""
    return "cuda" in str(job.get("device") or "cuda")


def software(job: Job) -> dict[str, str]:
    """Return what may change a figure beside the settings: kernel, device and package versions."""
    packages: dict[str, str | None] = job.get("environment.packages") or {}
    found = {"kernel": job.get("kernel"), "device": job.get("device"), **packages}
    return {name: one for name, one in found.items() if one is not None and name not in NO_FIGURES}


def commit(job: Job) -> str | None:
    """Return the first digits of the commit, with what says that files differed from it."""
    whole = job.get("environment.commit")
    if whole is None:
        return None
    digits, plus, changes = str(whole).partition("+")
    return digits[:12] + plus + changes


def labelled(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs, each with a label that no other has.

    It is the stack, then its settings and the overrides that not all jobs have, then the model or
    the corpus where jobs have several and the overrides do not say which; then the settings that
    differ though the same was typed, as where a file was edited between two jobs; then what else
    tells rows apart, the `software` of those that differ in their seed too.
    """
    jobs = list(jobs)
    common = shared(jobs)
    several = [
        name
        for name in ("model", "corpus")
        if len({job.get(f"{name}.name") for job in jobs if job.ok}) > 1
    ]
    own = _seeded(jobs, [_label(job, common, several) for job in jobs])
    edited = _of_files(jobs)
    labels = [label + files for label, files in zip(own, edited, strict=True)]
    for name, fact in FACTS:
        labels = told_apart(labels, [f"{name}={fact(job)}" if job.ok else "" for job in jobs])
    facts = [tuple(fact(job) for name, fact in FACTS if name != "seed") for job in jobs]
    works = [
        (_typed(job), files, *(job.get(f"{name}.name") for name in several), *others)
        for job, files, others in zip(jobs, edited, facts, strict=True)
    ]
    ran = [software(job) if job.ok else {} for job in jobs]
    for name in dict.fromkeys(chain(*ran)):
        told = [f"{name}={one.get(name, 'none')}" if one else "" for one in ran]
        labels = told_apart(labels, told, works)
    labels = told_apart(labels, [f"sweep={name}" for name in _sweeps(jobs)])
    labels = told_apart(labels, [f"({_place(job)})" for job in jobs])
    return [replace(job, label=label) for job, label in zip(jobs, labels, strict=True)]


def shared(jobs: Iterable[Job]) -> list[str]:
    """Return the overrides that all jobs have, but for the stack, in the order they were typed.

    There are none where a result does not say what was typed for it.
    """
    told = [overrides(job) for job in jobs if job.ok or typed(job)]
    kept = (one for one in dict.fromkeys(chain(*told[:1])) if not one.startswith("methods="))
    return [one for one in kept if all(one in other for other in told)]


def _label(job: Job, common: Sequence[str], several: Sequence[str]) -> str:
    told = [one for one in overrides(job) if not one.startswith(("methods=", "methods."))]
    own = list(dict.fromkeys(one for one in told if one not in common))
    for name in several:
        if job.ok and not any(one.startswith((f"{name}=", f"{name}.")) for one in own):
            own.append(str(job.get(f"{name}.name")))
    return " ".join([_stack(str(job.content["label"]), common), *own])


def _seeded(jobs: Sequence[Job], labels: Sequence[str]) -> list[str]:
    """Add of how many seeds a row is the mean, and the seed of a job that is none of them."""
    averaged = {label for job, label in zip(jobs, labels, strict=True) if job.seeds}
    found = []
    for job, label in zip(jobs, labels, strict=True):
        seed = f"seed={job.get('environment.seed')}"
        if job.seeds:
            label += f" (mean of {len(job.seeds)} seeds)"
        elif job.ok and label in averaged and seed not in overrides(job):
            label += f" {seed}"
        found.append(label)
    return found


def _of_files(jobs: Sequence[Job]) -> list[str]:
    """Return what else differs between jobs for which the same was typed, but for the seed."""
    alike: dict[Any, list[dict[str, Any]]] = {}
    for job in jobs:
        alike.setdefault(_typed(job), []).append(job.get("settings") or {})
    found = []
    for job in jobs:
        stack, others = str(job.content["label"]).partition(" ")[0], alike[_typed(job)]
        values = (job.get("settings") or {}).items()
        differing = [one for one in values if any(of.get(*one) != one[1] for of in others)]
        told = [f"{name}={written(value)}".removeprefix("methods.") for name, value in differing]
        found.append("".join(f" {one.removeprefix(f'{stack}.')}" for one in told))
    return found


def _typed(job: Job) -> tuple[str, ...]:
    told = (one for one in overrides(job) if not one.startswith("seed="))
    return (str(job.content["label"]), *job.methods, *told)


def _stack(label: str, common: Sequence[str]) -> str:
    """Return a job's own label without the settings of methods that all jobs have."""
    stack = label.partition(" ")[0]
    for one in common:
        setting = one.removeprefix("methods.").removeprefix(f"{stack}.")
        label = f"{label} ".replace(f" {setting} ", " ").rstrip()
    return label


def told_apart(
    labels: Sequence[str], facts: Sequence[str], alike: Sequence[Any] | None = None
) -> list[str]:
    """Add the facts to labels that are alike, where the facts that are known are not.

    Parameters
    ----------
    alike : sequence, optional
        What is equal for labels that count as alike; by default they themselves.
    """
    keys = labels if alike is None else alike
    known: dict[Any, set[str]] = {key: set() for key in keys}
    for key, fact in zip(keys, facts, strict=True):
        known[key] |= {fact} - {""}
    return [
        f"{label} {fact}" if fact and len(known[key]) > 1 else label
        for label, fact, key in zip(labels, facts, keys, strict=True)
    ]


def _sweeps(jobs: Sequence[Job]) -> list[str]:
    """Return the end of each job's sweep folder, as long as it takes to tell them apart."""
    roots = [job.root.absolute().parts for job in jobs]
    ends: list[Path] = []
    for length in range(1, max(map(len, roots), default=0) + 1):
        ends = [Path(*root[-length:]) for root in roots]
        if len(set(ends)) == len(set(roots)):
            break
    return list(map(str, ends))


def _place(job: Job) -> str:
    within = job.folder.relative_to(job.root)
    return str(within) if within.parts else str(job.folder)
