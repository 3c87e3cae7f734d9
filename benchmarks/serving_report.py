"""The table and the plot of benchmarks/serving.py, from the file it wrote.

python benchmarks/serving_report.py FILE.json [--into benchmarks/RESULTS.md]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from result_plots import contender_bars, draw_bars
from result_tables import commit, drawn, report_command, step_work, table, with_interval

COLUMNS = (
    "contender", "tokens/s", "times padded generate", "first token, s: median", "99th percentile",
    "same texts",
)  # fmt: skip


def markdown(content: dict[str, Any]) -> str:
    settings, machine = content["settings"], content["environment"]
    packages = machine["packages"]
    parts = [
        f"{machine['cpu']}, {machine['threads']} threads; torch {packages['torch']}, transformers "
        f"{packages['transformers']}; commit {commit(machine)}. {content['model']}, "
        f"{settings['dtype']}, {settings['repeats']} rounds; 95 % intervals."
    ]
    for run in content["runs"]:
        prompts, texts = (sum(one[key] for one in run["requests"]) for key in ("prompt", "new"))
        parts.append(
            f"**{len(run['requests'])} requests** with {prompts} tokens of prompts and {texts} new "
            "ones in all:"
        )
        parts.append(table(COLUMNS, [_cells(row) for row in run["rows"]]))
        known = (([row["contender"]], row.get("work_ms")) for row in run["rows"])
        if work := step_work("round", ["contender"], known):
            parts += [work[0] + " The prefill is outside, too.", *work[1:]]
    rows = content["runs"][0]["rows"]
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    parts.append("\n".join(f"- {note}." for note in notes))
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["contender"],
        with_interval(row["tokens_per_s"], 1),
        with_interval(row["speedup"], 2),
        f"{row['first_token_s']['p50']:.2f}",
        f"{row['first_token_s']['p99']:.2f}",
        f"{row['same_texts']:.0%}",
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw tokens a second with 95 % intervals, a panel a number of requests."""
    panels = {
        f"{len(run['requests'])} requests": contender_bars(run["rows"], "tokens_per_s")
        for run in content["runs"]
    }
    machine, settings = content["environment"], content["settings"]
    title = (
        f"Requests that arrive together, and times the speed of padded `generate`\n"
        f"{content['model']}, {settings['dtype']}; {machine['cpu']}, {machine['threads']} threads"
    )
    draw_bars(panels, "tokens a second", title, path)


write_report = partial(drawn, draw, markdown)

if __name__ == "__main__":
    report_command("serving", __doc__, write_report)
