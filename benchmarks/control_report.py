"""The table and the plot of benchmarks/control.py, from the file it wrote.

python benchmarks/control_report.py FILE.json [--into benchmarks/RESULTS.md]
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from result_tables import Estimate, commit, drawn, errors, report_command, table
from scipy.stats import binomtest

Run = dict[str, Any]

COLUMNS = (
    "machine", "estimates of", "runs", "intervals that hold 1", "95 % interval of that share",
    "half-width, median", "largest", "estimate, median", "from", "to",
)  # fmt: skip
ROWS = {"speedup": "the copy's speedup", "control": "the control"}
INK, WRONG = "#1f5f8b", "#c23b22"


def markdown(content: dict[str, Any]) -> str:
    runs = {state: found for state, found in content["runs"].items() if found}
    rows = [
        _cells(state, ROWS[name], [run[name] for run in found])
        for state, found in runs.items()
        for name in ROWS
    ]
    return "\n\n".join([_setting(content), table(COLUMNS, rows), *map(_notes, runs.items())]) + "\n"


def holds(found: Estimate) -> bool:
    """Return whether an interval holds 1."""
    return found["low"] <= 1 <= found["high"]


def _cells(state: str, name: str, found: list[Estimate]) -> list[str]:
    held = sum(map(holds, found))
    share = binomtest(held, len(found)).proportion_ci(method="wilson")
    widths = [(one["high"] / one["low"]) ** 0.5 - 1 for one in found]
    estimates = [one["estimate"] for one in found]
    return [
        state,
        name,
        str(len(found)),
        f"{held} ({held / len(found):.0%})",
        f"{share.low:.1%} to {share.high:.1%}",
        f"{median(widths):.1%}",
        f"{max(widths):.1%}",
        *(f"{one:.3f}" for one in (median(estimates), min(estimates), max(estimates))),
    ]


def _notes(state: tuple[str, list[Run]]) -> str:
    name, runs = state
    verdicts, stopped = (
        ", ".join(f"{what} {count}" for what, count in Counter(found).most_common())
        for found in (
            [run["verdict"] for run in runs],
            [run["rounds"]["stopped_by"] for run in runs],
        )
    )
    beside = median(run["load"]["cores_beside"] for run in runs)
    rounds = median(run["rounds"]["done"] for run in runs)
    return (
        f"{name.capitalize()}: others took {beside:.2f} cores in the median. Verdicts: {verdicts}. "
        f"Rounds: {rounds:.0f} in the median; stopped by {stopped}."
    )


def _setting(content: dict[str, Any]) -> str:
    settings, machine = content["settings"], content["environment"]
    packages = machine["packages"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {settings['threads']} threads; torch "
        f"{packages['torch']}, transformers {packages['transformers']}; commit "
        f"{commit(machine)}. {settings['model']} against its own copy; "
        f"{settings['prompts']} prompts, {settings['new_tokens']} new tokens, "
        f"{settings['seconds']:g} s a run at most."
    )


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw every run's interval, a panel a state of the machine."""
    runs = {state: found for state, found in content["runs"].items() if found}
    figure = Figure(figsize=(5.5 * len(runs), 4), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, (state, found) in zip(panels, runs.items(), strict=True):
        speedups = sorted((run["speedup"] for run in found), key=lambda one: one["estimate"])
        for place, one in enumerate(speedups):
            ink = INK if holds(one) else WRONG
            marker = "o" if holds(one) else "x"
            axes.errorbar(
                place, one["estimate"], yerr=errors([one]), color=ink, marker=marker, markersize=4
            )
        held = sum(map(holds, speedups))
        axes.axhline(1, color="grey", linewidth=1, zorder=0)
        axes.set_xticks([])
        axes.set_ylabel("speedup, with 95 % interval")
        axes.set_title(f"{state}: {held} of {len(speedups)} intervals hold 1 (x: does not)")
        axes.spines[["top", "right"]].set_visible(False)
    machine = content["environment"]
    figure.suptitle(
        f"{content['settings']['model']} against its own copy; {machine['cpu']}, "
        f"{content['settings']['threads']} threads"
    )
    figure.savefig(path, dpi=130)


write_report = partial(drawn, draw, markdown)

if __name__ == "__main__":
    report_command("control", __doc__, write_report)
