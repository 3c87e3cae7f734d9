"""The plots of a report, with the error bars the figures have."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trimtab.files import replacing
from trimtab.models.sites import SITE_TITLES
from trimtab.report.load import Job

LABEL_WIDTH, LINE = 40, 0.17  # characters and inches of a line of a label
INK, REFERENCE = "#1f5f8b", "#999999"
SAVINGS = {
    "prompt tokens": "tokens.prompt.saving",
    "output tokens": "tokens.output.saving",
    "forward steps": "tokens.steps.saving",
}


def speedup_plot(jobs: Sequence[Job], path: Path) -> None:
    """Draw each stack's speedup over the unmodified model, with 95 % intervals."""
    figure, axes = _rows(jobs, 1.2, 0.45)
    values = [job.get("speed.speedup") for job in jobs]
    rows = range(len(jobs))
    axes.errorbar(
        [value["estimate"] for value in values], rows, xerr=_errors(values), fmt="o", color=INK,
        capsize=3,
    )  # fmt: skip
    axes.axvline(1, color=REFERENCE, linewidth=1)
    axes.set_xlabel("speedup per byte of text, with 95 % interval")
    _save(figure, path)


def token_plot(jobs: Sequence[Job], path: Path) -> None:
    """Draw the tokens and the forward steps each stack saves on the same text: exact counts."""
    figure, axes = _rows(jobs, 1.4, 0.6)
    for number, (label, field) in enumerate(SAVINGS.items()):
        rows = [row + 0.25 * (number - 1) for row in range(len(jobs))]
        axes.barh(rows, [100 * job.get(field) for job in jobs], height=0.22, label=label)
    axes.axvline(0, color=REFERENCE, linewidth=1)
    axes.set_xlabel("% saved on the same text")
    figure.legend(loc="outside upper center", ncols=len(SAVINGS), fontsize=8)
    _save(figure, path)


def compression_plot(jobs: Sequence[Job], path: Path) -> None:
    """Draw what follows a compressed prompt beside the whole prompt and the prompt cut."""
    figure, axes = _rows(jobs, 1.4, 0.6)
    rows = range(len(jobs))
    bits = [job.get("quality.compression.bits_per_byte") for job in jobs]
    cut = [one["prompt_cut"] for one in bits]
    axes.plot([one["baseline"] for one in bits], rows, "|", color=INK, markersize=12, label="whole")
    axes.plot(cut, rows, "x", color=REFERENCE, label="prompt cut")
    axes.errorbar(
        [one["candidate"] for one in bits], rows,
        xerr=_errors([one["difference"] for one in bits]), fmt="o", color=INK, capsize=3,
        label="compressed, 95 % interval of its difference from the cut",
    )  # fmt: skip
    axes.set_xlabel("bits per byte of what follows the prompt (lower is better)")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    _save(figure, path)


def quality_plot(jobs: Sequence[Job], path: Path) -> None:
    """Draw quality lost against speed gained, with 95 % intervals on both."""
    lines = sum(_lines(job) for job in jobs)
    figure = Figure(figsize=(9, max(4.5, 0.5 + LINE * lines)), layout="constrained")
    axes = figure.subplots()
    for job in jobs:
        _quality_point(axes, job)
    figure.legend(loc="outside right upper", fontsize=8)
    axes.axvline(1, color=REFERENCE, linewidth=1)
    axes.axhline(0, color=REFERENCE, linewidth=1)
    axes.margins(0.15)
    axes.set_xlabel("speedup over the unmodified model")
    axes.set_ylabel("bits per byte lost (lower is better)")
    _save(figure, path)


def sparsity_map(job: Job, path: Path) -> None:
    """Draw what was dropped at every site of every layer, transforms marked."""
    rows = job.get("sparsity.layers")
    sites = list(dict.fromkeys(row["site"] for row in rows))
    layers = 1 + max(row["layer"] for row in rows)
    figure = Figure(figsize=(3.2 + 0.25 * layers, 2.4 + LINE * _lines(job)), layout="constrained")
    axes = figure.subplots()
    values = [[row["achieved"] for row in rows if row["site"] == site] for site in sites]
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    marked = [row for row in rows if row["basis"] == "transform"]
    axes.plot(
        [row["layer"] for row in marked], [sites.index(row["site"]) for row in marked], "w.",
        markersize=4,
    )  # fmt: skip
    axes.set_yticks(range(len(sites)), [f"{SITE_TITLES[site]} ({site})" for site in sites])
    axes.set_xlabel("layer (a dot: the site has a transform of its own)")
    axes.set_title(_wrapped(job), fontsize=9)
    figure.colorbar(image, label="share dropped")
    _save(figure, path)


def operating_points_plot(job: Job, path: Path) -> None:
    """Draw what merging more and more n-grams saves and costs, as calibration measured it."""
    figure = Figure(figsize=(6, 3.8 + LINE * _lines(job)), layout="constrained")
    axes = figure.subplots()
    points = sorted(job.get("vocabulary.operating_points"), key=lambda point: point["saving"])
    axes.plot(
        [100 * point["saving"] for point in points],
        [100 * point["increase"] for point in points],
        "o-",
        color=INK,
    )
    for point in points:
        place = 100 * point["saving"], 100 * point["increase"]
        axes.annotate(f"{point['ngrams']}", place, xytext=(4, -10), textcoords="offset points")
    budget = job.get("vocabulary.quality_budget")
    axes.axhline(100 * budget, color=REFERENCE, linewidth=1)
    axes.set_xlabel("% of the tokens saved (at a point: n-grams merged)")
    axes.set_ylabel("% more bits per byte; the line is the quality budget")
    axes.set_title(f"{_wrapped(job)}, validation text", fontsize=9)
    _save(figure, path)


def _rows(jobs: Sequence[Job], frame: float, row: float) -> tuple[Figure, Axes]:
    """Return a figure with one labelled row a job, in inches: the frame, and at least `row` each.

    The rows are at 0, 1, ... from above.
    """
    row = max(row, LINE * (1 + max(_lines(job) for job in jobs)))
    figure = Figure(figsize=(7, frame + row * len(jobs)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(jobs)), [_wrapped(job) for job in jobs])
    axes.set_ylim(len(jobs) - 0.5, -0.5)
    return figure, axes


def _wrapped(job: Job) -> str:
    """Return a job's label in lines, none of it read as a formula."""
    return fill(job.label, LABEL_WIDTH, break_on_hyphens=False).replace("$", r"\$")


def _lines(job: Job) -> int:
    return _wrapped(job).count("\n") + 1


def _quality_point(axes: Axes, job: Job) -> None:
    speed, lost = job.get("speed.speedup"), job.get("quality.bits_per_byte.difference")
    x, y = speed["estimate"], lost["estimate"]
    axes.errorbar(
        [x],
        [y],
        xerr=_errors([speed]),
        yerr=_errors([lost]),
        fmt="o",
        capsize=3,
        label=_wrapped(job),
    )


def _errors(values: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [
        [value["estimate"] - value["low"] for value in values],
        [value["high"] - value["estimate"] for value in values],
    ]


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # labels are users' own
        figure.savefig(temporary, format="png", dpi=130)
