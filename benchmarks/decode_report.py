"""The table and the plot of benchmarks/decode.py, from the file it wrote.

python benchmarks/decode_report.py FILE.json [--into benchmarks/RESULTS.md]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from result_tables import (
    commit,
    drawn,
    errors,
    report_command,
    step_work,
    table,
    with_interval,
)

COLUMNS = (
    "contender", "ms a token", "tokens/s", "tokens a step", "ms a byte of text",
    "times transformers, a token", "a byte", "MB a step", "floor, ms a token",
    "share of the floor", "same text",
)  # fmt: skip
WRONG = (
    "less is read than was counted, weights stay in the processor's caches, or a sum does not read "
    "as fast as the machine can."
)
INK, FLOOR = "#1f5f8b", "#c23b22"


def markdown(content: dict[str, Any]) -> str:
    parts = [_setting(content)]
    for run in content["runs"]:
        rates, pages = [rate / 1e9 for rate in run["read"]["bytes_per_s"]], run["pages"]
        huge = pages["anonymous_huge_bytes"] / pages["anonymous_bytes"]
        spread = f"median of {len(rates)}, {min(rates):.1f} to {max(rates):.1f}"
        parts.append(
            f"**{run['model']}, {run['dtype']}.** A sum read memory at {median(rates):.1f} GB/s "
            f"({spread}), "
            f"{run['read']['huge_share']:.0%} of it in huge pages; of all the process's memory "
            f"{huge:.0%} was in huge pages at the end."
        )
        parts.append(table(COLUMNS, [_cells(row) for row in run["rows"]]))
        parts.append("\n".join(_notes(run)))
        known = [([row["contender"]], row["work_ms_per_step"]) for row in run["rows"]]
        parts += step_work("step", ("contender",), known)
    return "\n\n".join(parts) + "\n"


def _notes(run: dict[str, Any]) -> list[str]:
    rows = run["rows"]
    lines = []
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        lines.append(f"- {'; '.join(r['contender'] for r in rows if r['note'] == note)}: {note}.")
    counted = {r["contender"]: n for r in rows if (n := r.get("exact_logits")) is not None}
    if counted:
        means = "; ".join(f"{name}: {number:.1f}" for name, number in counted.items())
        lines.append(f"- Logits of the head itself that chose a token, in the mean: {means}.")
    lines += [f"- {key} is absent: {reason}." for key, reason in run["missing"].items()]
    wrong = [row["contender"] for row in rows if row["floor_share"]["low"] > 1]
    if wrong:
        lines.append(
            f"- A share over 1 says that the floor is wrong, of {'; '.join(wrong)}: {WRONG}"
        )
    return lines


def _setting(content: dict[str, Any]) -> str:
    settings, machine = content["settings"], content["environment"]
    packages = machine["packages"]
    llama = content["llama.cpp"]
    other = f"; xllamacpp {llama['xllamacpp']} ({llama['system']})" if llama else ""
    return (
        f"{machine['cpu']}, {machine['threads']} threads; torch {packages['torch']}, transformers "
        f"{packages['transformers']}{other}; commit {commit(machine)}. "
        f"{settings['context']} tokens of context, {settings['new_tokens']} new ones, "
        f"{settings['prompts']} prompts, {settings['repeats']} rounds; 95 % intervals."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["contender"],
        with_interval(row["ms_per_token"], 2),
        f"{row['tokens_per_s']:.1f}",
        f"{row['tokens_per_step']:.2f}",
        f"{one['estimate']:.2f}" if (one := row["ms_per_byte"]) else "–",
        with_interval(row["speedup"], 2),
        with_interval(one, 2) if (one := row["speedup_per_byte"]) else "–",
        f"{row['step_bytes'] / 1e6:.0f}",
        f"{row['floor_ms_per_token']:.2f}",
        with_interval(row["floor_share"], 2),
        f"{row['same_text']:.0%}",
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw milliseconds a token with 95 % intervals, and the floor of each, a panel a dtype."""
    runs, settings = content["runs"], content["settings"]
    rows = max(len(run["rows"]) for run in runs)
    figure = Figure(figsize=(6.2 * len(runs) + 1.5, 1.5 + 0.42 * rows), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        times = [row["ms_per_token"] for row in run["rows"]]
        places = range(len(times))
        values = [one["estimate"] for one in times]
        axes.barh(places, values, xerr=errors(times), height=0.6, color=INK, alpha=0.55, capsize=3)
        for place, row, time in zip(places, run["rows"], times, strict=True):
            floor = row["floor_ms_per_token"]
            axes.plot([floor, floor], [place - 0.38, place + 0.38], color=FLOOR, linewidth=2)
            label = f" {time['estimate']:.1f} ms, {row['speedup']['estimate']:.2f}x"
            axes.text(time["high"], place, label, va="center", fontsize=8)
        axes.set_yticks(places, [row["contender"] for row in run["rows"]], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(one["high"] for one in times))
        axes.set_xlabel("ms a token, with 95 % interval; red: the memory floor")
        axes.set_title(f"{run['model']}, {run['dtype']}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    machine = content["environment"]
    figure.suptitle(
        f"Decoding at batch 1 after {settings['context']} tokens, and times transformers' speed\n"
        f"{machine['cpu']}, {machine['threads']} threads",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)


write_report = partial(drawn, draw, markdown)

if __name__ == "__main__":
    report_command("decode", __doc__, write_report)
