"""Many requests together: the stack beside transformers' own ways of serving them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from trimtab.report.figures import interval, is_interval, middle, named, written
from trimtab.report.job import Job
from trimtab.report.marks import explained, mark, marked
from trimtab.report.plots.comparison import CHANGED
from trimtab.report.plots.panel import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    Panel,
    Plot,
    Row,
    Rows,
    error_bar,
    numbers,
    plain,
)
from trimtab.report.plots.ranking import left_out
from trimtab.report.table import cell
from trimtab.report.verdict import ALIKE, FASTER, NOISY, serves

FILE = "serving_comparison.png"
SPEEDUP = "serving.speedup"
PEERS = {
    "padded": ("|", "| padded generate"),
    "static": ("x", "× static cache"),
    "continuous": ("D", "◇ continuous batching"),
}
TIMED = ("requests_per_s", "ttft_p99_ms")
FIGURES = (
    ("requests/s (more is better)", "requests_per_s", ".2f", 1.0),
    ("first token, p99 in ms (less is better)", "ttft_p99_ms", ".0f", 1.0),
    ("KV memory held, MB (less is better)", "kv_committed_bytes", ".1f", 1e-6),
)


def serving_plot(jobs: Sequence[Job], note: str) -> Plot | None:
    """Return the stacks at the most requests that each served, or None where none did."""
    having = [job for job in jobs if job.get("serving.servers")]
    panels = tuple(panel for one in FIGURES if (panel := _panel(jobs, *one)))
    if not panels:
        return None
    faster = [job for job in having if job.methods and serves(job) == FASTER]
    marks = {job.label: mark(SPEEDUP, job, jobs) for job in having}
    ranked = [job for job in faster if not marks[job.label]]
    if best := max(ranked, key=lambda job: job.get("serving.speedup.estimate"), default=None):
        told = interval(best.get("serving.speedup"), ".2f")
        title = f"{best.label} answers {told} times the requests per second of padded generate"
        least = best.get("serving.speedup.low")
        near = [
            job.label for job in ranked
            if job is not best and job.get("serving.speedup.high") >= least
        ]  # fmt: skip
        title += f"; cannot be told from it: {named(near)}" if near else ""
        apart = [
            job for job in having if job not in ranked
            and (job in faster or _may_lead(job, least))
        ]  # fmt: skip
        title += left_out(SPEEDUP, apart, jobs)
    elif faster:
        labels = named([job.label for job in faster])
        title = f"More requests per second than padded generate: {labels}; not ranked, as {CHANGED}"
    else:
        title = "No stack measurably answers more requests per second than padded generate"
    return Plot(FILE, title, panels, f"{explained(marks.values())} {note}".lstrip())


def _may_lead(job: Job, least: float) -> bool:
    """Return whether noise hides if a stack answers as many requests as the best does at least."""
    unclear = bool(job.methods) and serves(job) in (NOISY, ALIKE)
    return unclear and bool(job.get("serving.speedup.high") >= least)


def _panel(jobs: Sequence[Job], title: str, field: str, form: str, scale: float) -> Panel | None:
    tables = [(job, _most(job, field)) for job in jobs if job.get("serving.servers")]
    known = [(job, values) for job, values in tables if "candidate" in values]
    if not known:
        return None
    rows = Rows(
        [
            Row(
                marked(job.label, mark(SPEEDUP, job, jobs) if field in TIMED else ""),
                written(values["candidate"], form, scale),
            )
            for job, values in known
        ]
    )
    key = [told for server, (_, told) in PEERS.items() if any(server in one for _, one in known)]

    def draw(axes: Axes) -> None:
        plain(axes)
        for (job, values), place in zip(known, rows.marks, strict=True):
            ours = values["candidate"]
            axes.barh(place, middle(ours) * scale, height=0.13, edgecolor=ACCENT,
                      color=ACCENT if job.methods else PAPER, linewidth=1)  # fmt: skip
            if is_interval(ours):
                error_bar(axes, ours, place, scale)
            for server, (marker, _) in PEERS.items():
                if server in values:
                    theirs, size = middle(values[server]), 12 if marker == "|" else 6
                    axes.plot(theirs * scale, place, marker, color=INK, markersize=size,
                              markerfacecolor=PAPER, markeredgewidth=1.4)  # fmt: skip
        rows.label(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("   ".join(["■ stack", *key]), fontsize=7, color=MUTED)

    servers = ("candidate", *PEERS)
    lines = [(job.label, [cell(values.get(server), form, scale) for server in servers])
             for job, values in known]  # fmt: skip
    return Panel(title, rows.height, draw, numbers(title, servers, lines), bottom=0.48)


def _most(job: Job, field: str) -> dict[str, Any]:
    """Return a figure of every server that has it, at the most requests that arrived together."""
    servers: list[dict[str, Any]] = job.get("serving.servers")
    most = max(row["requests"] for row in servers)
    return {
        row["server"]: row[field]
        for row in servers
        if row["requests"] == most and row.get(field) is not None
    }
