"""The table and the plot of benchmarks/prefill.py, from the file it wrote.

python benchmarks/prefill_report.py FILE.json [--into benchmarks/RESULTS.md]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from result_plots import contender_bars, draw_bars
from result_tables import commit, drawn, report_command, table, with_interval, work_table

COLUMNS = (
    "prompt, tokens", "contender", "ms to the first token", "times transformers",
    "times the same without LaRoSA", "same token",
)  # fmt: skip


def markdown(content: dict[str, Any]) -> str:
    settings, machine = content["settings"], content["environment"]
    packages = machine["packages"]
    cells = [[_prompts(run), *_cells(row)] for run in content["runs"] for row in run["rows"]]
    head = (
        f"{machine['cpu']}, {machine['threads']} threads; torch {packages['torch']}, transformers "
        f"{packages['transformers']}; commit {commit(machine)}. {content['model']}, "
        f"{settings['dtype']}, {settings['repeats']} rounds; 95 % intervals; several prompts "
        "arrive together."
    )
    return f"{head}\n\n{table(COLUMNS, cells)}\n\n{_work(content['runs'])}"


def _work(runs: list[dict[str, Any]]) -> str:
    """Return where the engine's time goes, as a sentence and a table."""
    known = [
        ((_prompts(run), row["contender"]), row["work_ms"])
        for run in runs
        for row in run["rows"]
        if "work_ms" in row
    ]
    return (
        "Where the engine's milliseconds go, by PyTorch's profiler, whose own time is in them: the "
        "mean of a few turns. Norms and activations are other operators.\n\n"
        f"{work_table(('prompt, tokens', 'contender'), known, 1)}\n"
    )


def _prompts(run: dict[str, Any]) -> str:
    return " + ".join(map(str, run["prompts"]))


def _cells(row: dict[str, Any]) -> list[str]:
    sparse = "larosa" in row["contender"]
    return [
        row["contender"],
        with_interval(row["ms"], 1),
        with_interval(row["speedup"], 2),
        with_interval(row["speedup_over_it"], 2) if sparse else "",
        f"{row['same_tokens']:.0%}",
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw milliseconds with 95 % intervals, a panel for the prompts of each run."""
    panels = {
        f"{_prompts(run)} tokens": contender_bars(run["rows"], "ms") for run in content["runs"]
    }
    machine = content["environment"]
    title = (
        f"Time to the first token, and times the speed of transformers' `generate`\n"
        f"{content['model']}, {content['settings']['dtype']}; {machine['cpu']}, "
        f"{machine['threads']} threads"
    )
    draw_bars(panels, "milliseconds", title, path)


write_report = partial(drawn, draw, markdown)

if __name__ == "__main__":
    report_command("prefill", __doc__, write_report)
