"""Jobs that differ in their seed alone, as one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from statistics import fmean, geometric_mean
from typing import Any

from trimtab.report.derive import derived
from trimtab.report.job import Job
from trimtab.report.labels import commit, labelled, overrides, settings, software, typed
from trimtab.report.verdict import ALIKE, setting
from trimtab.retyped import options

INTERVAL = ("estimate", "low", "high")
RATIOS = (
    "speedup", "prefill_speedup", "decode_speedup", "speedup_continuous", "ratio", "control",
    "prefill_control",
)  # fmt: skip


def rows(jobs: Sequence[Job]) -> list[Job]:
    """Return the rows of a report: its jobs, those that differ in their seed alone averaged.

    Ratios are averaged geometrically, all else arithmetically. An interval spans those of all
    seeds: the range of two or three estimates alone would be narrow by chance. Samples are put
    together. A verdict that the seeds do not share is that no difference was found.
    """
    found: list[Job] = []
    for group in _groups(jobs, _setting):
        for part in [group] if _distinct(group) else _groups(group, lambda job: job.root):
            found += [_mean(part)] if len(part) > 1 and _distinct(part) else part
    first = {job.folder: place for place, job in enumerate(jobs)}
    return labelled(sorted(found, key=lambda job: first[job.folder]))


def _groups(jobs: Iterable[Job], key: Callable[[Job], Any]) -> list[list[Job]]:
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return list(groups.values())


def _setting(job: Job) -> Any:
    """Return everything that jobs must share to be averaged."""
    if not job.ok:
        return job.folder
    told = tuple(one for one in overrides(job) if not one.startswith("seed="))
    work = (*setting(job), job.get("tokens.baseline"), job.get("speed.paired"), *settings(job))
    ran = commit(job), frozenset(software(job).items())
    typing = typed(job), options(job.content), told
    return job.content["label"], job.methods, *typing, *ran, *work


def _distinct(jobs: Sequence[Job]) -> bool:
    seeds = [job.get("environment.seed") for job in jobs]
    return None not in seeds and len(set(seeds)) == len(seeds)


def _mean(jobs: Sequence[Job]) -> Job:
    contents = [{**job.content, "derived": None} for job in jobs]
    content = _merged(contents, "")
    content |= derived(content)
    seeds = tuple(sorted(job.get("environment.seed") for job in jobs))
    return Job(jobs[0].folder, content, jobs[0].label, jobs[0].root, seeds)


def _merged(values: Sequence[Any], name: str) -> Any:
    first = values[0]
    if name == "samples":
        if not all(values):
            return None  # those that are left would stand for all seeds
        return {part: list(chain(*(one.get(part) or () for one in values))) for part in first}
    if name in ("warnings", "overrides"):
        return list(dict.fromkeys(chain(*(one or () for one in values))))
    if name == "reasons":  # what any seed lacks, the mean lacks
        parts = dict.fromkeys(chain(*(one or () for one in values)))
        told = [one or {} for one in values]
        return {part: " / ".join(dict.fromkeys(filter(None, (one.get(part) for one in told))))
                for part in parts}  # fmt: skip
    if all(value == first for value in values):
        return first
    if name == "busy":
        return any(values)
    if all(isinstance(value, dict) for value in values):
        if all(set(INTERVAL) <= value.keys() for value in values):
            return _spread(values, name)
        names = dict.fromkeys(chain(*values))
        return {part: _merged([one.get(part) for one in values], part) for part in names}
    if all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [_merged(items, name) for items in zip(*values, strict=True)]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _average(values, name)
    if all(isinstance(value, str) for value in values):
        return ALIKE if name == "verdict" else " / ".join(dict.fromkeys(values))
    return None


def _average(values: Sequence[float], name: str) -> float:
    return geometric_mean(values) if name in RATIOS else fmean(values)


def _spread(values: Sequence[dict[str, float]], name: str) -> dict[str, float]:
    return {
        "estimate": _average([value["estimate"] for value in values], name),
        "low": min(value["low"] for value in values),
        "high": max(value["high"] for value in values),
    }
