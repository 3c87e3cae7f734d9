"""Plots of single jobs: where activations were dropped, what merging n-grams saves and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from trimtab.models.sites import SITE_TITLES
from trimtab.report.figures import listed, named
from trimtab.report.figures import number as number_of
from trimtab.report.job import Job
from trimtab.report.notices import facts
from trimtab.report.plots.panel import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    SMALL,
    Panel,
    Plot,
    Row,
    Rows,
    framed,
    numbers,
)
from trimtab.report.table import cell

SPARSITY, OPERATING = "sparsity_by_layer_{}.png", "vocabulary_operating_points_{}.png"
SITE, SAME = ("layer", "site", "basis"), 0.01
# No shade is a colour of the page's, which would follow its scheme.
SHADES = LinearSegmentedColormap.from_list("dropped", ["#e8eef3", "#205f8c", "#0b2239"])


def sparsity_maps(jobs: Mapping[int, Job]) -> Iterator[Plot]:
    """Yield what was dropped at every site of every layer: one map for jobs that look alike.

    Parameters
    ----------
    jobs : mapping of int to Job
        By their numbers; the first of those that look alike names the file.
    """
    alike: list[dict[int, Job]] = []
    for number, job in jobs.items():
        if job.get("sparsity.layers"):
            groups = (group for group in alike if _look_alike(next(iter(group.values())), job))
            if (group := next(groups, None)) is None:
                alike.append(group := {})
            group[number] = job
    for group in alike:
        number, first = next(iter(group.items()))
        yield _sparsity_map([*group.values()], number, facts(first))


def _look_alike(one: Job, other: Job) -> bool:
    """Return whether jobs of one machine dropped the same at every site, as far as shades show."""
    first, second = one.get("sparsity.layers"), other.get("sparsity.layers")
    if facts(one) != facts(other) or len(first) != len(second):
        return False
    return all(
        [mine[key] for key in SITE] == [theirs[key] for key in SITE]
        and abs(mine["achieved"] - theirs["achieved"]) < SAME
        for mine, theirs in zip(first, second, strict=True)
    )


def _sparsity_map(jobs: Sequence[Job], number: int, note: str) -> Plot:
    """Return the map of jobs that look alike, transforms marked."""
    layers: list[dict[str, Any]] = jobs[0].get("sparsity.layers")
    sites = list(dict.fromkeys(row["site"] for row in layers))
    strips = {site: [row for row in layers if row["site"] == site] for site in sites}
    means = {
        site: sum(row["achieved"] for row in strip) / len(strip) for site, strip in strips.items()
    }
    rows = Rows([Row(f"{SITE_TITLES[site]} ({site})", f"{means[site]:.0%}") for site in sites]
                + [Row("dropped share", "0 to 100 %")])  # fmt: skip

    def draw(axes: Axes) -> None:
        count = 1 + max(row["layer"] for row in layers)
        for strip, place in zip(strips.values(), rows.marks, strict=False):
            edges = [row["layer"] for row in strip] + [count]
            _shade(axes, edges, place, [row["achieved"] for row in strip])
            marked = [row["layer"] + 0.5 for row in strip if row["basis"] == "transform"]
            axes.plot(marked, [place] * len(marked), "o", color=PAPER, markersize=2.2)
        steps = range(SHADES.N // 4)
        _shade(axes, [count * step / len(steps) for step in (*steps, len(steps))], rows.marks[-1],
               [step / (len(steps) - 1) for step in steps])  # fmt: skip
        axes.set_xlim(0, count)
        rows.label(axes)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED, pad=3)
        axes.set_xlabel("layer (a dot: the site has a transform of its own)", fontsize=7.5,
                        color=MUTED)  # fmt: skip

    most = max(means.values())
    where = [SITE_TITLES[site] for site in sites if most - means[site] < SAME]
    drops = f"{named([job.label for job in jobs])} drop{'s' * (len(jobs) == 1)}"
    title = f"{drops} most at the {listed(where)}: {most:.0%} on average"
    if len(where) == len(sites):
        title = f"{drops} about the same at every site: {most:.0%} on average"
    lines = [(f"layer {row['layer']}, {SITE_TITLES[row['site']]} ({row['site']})",
              [cell(row["basis"]), cell(row["achieved"], ".3f")]) for row in layers]  # fmt: skip
    table = numbers("dropped share", ("basis", "dropped share"), lines, "site")
    panel = Panel("dropped share of the activations", rows.height, draw, table,
                  bottom=0.48)  # fmt: skip
    return Plot(SPARSITY.format(number), title, (panel,), note)


def _shade(axes: Axes, edges: Sequence[float], place: float, shares: Sequence[float]) -> None:
    """Draw a strip of cells between the edges, darker where more was dropped."""
    axes.pcolormesh(edges, [place - 0.08, place + 0.08], [shares], cmap=SHADES, vmin=0, vmax=1)


def operating_points(job: Job, number: int) -> Plot | None:
    """Return what merging more and more n-grams saves and costs, as calibration measured it.

    None for random weights, whose bits per byte mean nothing.
    """
    found: list[dict[str, Any]] = job.get("vocabulary.operating_points") or []
    if not found or job.random_weights:
        return None
    points = sorted(found, key=lambda point: point["saving"])
    budget = job.get("vocabulary.quality_budget")

    def draw(axes: Axes) -> None:
        framed(axes)
        axes.plot([100 * one["saving"] for one in points],
                  [100 * one["increase"] for one in points], "o-", color=ACCENT,
                  linewidth=1.2, markersize=4)  # fmt: skip
        for one in points:
            axes.annotate(f"{one['ngrams']}", (100 * one["saving"], 100 * one["increase"]),
                          xytext=(4, -9), textcoords="offset points", fontsize=SMALL - 1,
                          color=INK)  # fmt: skip
        axes.margins(0.12)
        if budget is not None:
            axes.axhline(100 * budget, color=MUTED, linewidth=1, linestyle="--")
            axes.annotate("quality budget", (1, 100 * budget), xycoords=("axes fraction", "data"),
                          xytext=(0, 3), textcoords="offset points", fontsize=SMALL - 1,
                          ha="right", color=MUTED)  # fmt: skip
        axes.set_xlabel("% of the tokens saved (at a point: n-grams merged)", fontsize=7.5,
                        color=MUTED)  # fmt: skip
        axes.set_ylabel("% more bits per byte", fontsize=7.5, color=MUTED)

    heads = ("n-grams merged", "tokens saved", "change of bits per byte")
    lines = [(job.label, [cell(one["ngrams"], ""), cell(one["saving"], ".1%"),
                          cell(one["increase"], "+.1%")]) for one in points]  # fmt: skip
    most = points[-1]
    title = (f"{job.label}: merging {most['ngrams']} n-grams saves {most['saving']:.1%} of the "
             f"tokens, for {number_of(most['increase'], '+.1%')} bits per byte")  # fmt: skip
    if (merged := job.get("vocabulary.merged")) != most["ngrams"]:
        title += f"; the stack merges {merged}"
    panel = Panel("merged n-grams, on validation text", 2.6, draw,
                  numbers("operating points", heads, lines), left=0.62, bottom=0.5)  # fmt: skip
    return Plot(OPERATING.format(number), title, (panel,), facts(job))
