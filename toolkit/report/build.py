"""Build ``report/``: the table, the plots and what to know when reading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.files import replacing
from toolkit.report.load import Job, load_jobs
from toolkit.report.plots import quality_plot, sparsity_map, speedup_plot
from toolkit.report.table import csv_table, interval, markdown_table

SPARSITY = "sparsity_by_layer_{}.png"
SPEEDUP, QUALITY = "all_methods_speedup_comparison.png", "quality_versus_speed.png"


def build_report(folder: Path) -> Path:
    """Write the report of the jobs below `folder` and return the path of its report.md.

    The same files on disk give the same report.

    Raises
    ------
    TrimtabError
        If there is no job.
    """
    jobs = load_jobs(folder)
    target = folder / "report"
    target.mkdir(exist_ok=True)
    measured = [job for job in jobs if job.ok]
    plots = []
    if measured:
        speedup_plot(measured, target / SPEEDUP)
        plots.append(SPEEDUP)
    scored = [job for job in measured if job.get("quality") is not None]
    if scored:
        quality_plot(scored, target / QUALITY)
        plots.append(QUALITY)
    for job in measured:
        if job.get("sparsity") is not None:
            name = SPARSITY.format(jobs.index(job))
            sparsity_map(job, target / name)
            plots.append(name)
    for leftover in {path.name for path in target.glob("*.png")} - set(plots):
        (target / leftover).unlink()
    _write(target / "results.csv", csv_table(jobs))
    _write(target / "report.md", _markdown(jobs, measured, plots))
    return target / "report.md"


def _markdown(jobs: Sequence[Job], measured: Sequence[Job], plots: Sequence[str]) -> str:
    parts = ["# Trimtab report"]
    for machine in dict.fromkeys(_machine(job) for job in measured):
        parts.append(machine)
    parts += [markdown_table(jobs), _reading()]
    parts += [_verdict(job) for job in measured if job.content["methods"]]
    parts += [f"![{Path(name).stem}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


def _machine(job: Job) -> str:
    environment: dict[str, Any] = job.content["environment"]
    packages = environment["packages"]
    hardware = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    return (
        f"{job.get('model.name')} ({job.get('model.dtype')}) on `{job.get('corpus.name')}`, "
        f"measured on {hardware}; torch {packages['torch']}, transformers "
        f"{packages['transformers']}, commit {str(environment['commit'])[:12]}."
    )


def _reading() -> str:
    return (
        "Every row is measured against the unmodified model under transformers' own `generate`. "
        "Brackets are 95 % bootstrap intervals over raw samples that each job's `result.json` "
        "keeps. *Same text*: share of the baseline's greedy text before the first difference. "
        "*Bytes needed*: weight bytes of the decoder blocks behind what was kept, transforms "
        "counted, over dense, on the text that was scored. `baseline` compares the "
        "model with its own copy: its interval is the noise of the measurement. docs/results.md "
        "explains every field."
    )


def _verdict(job: Job) -> str:
    speedup = job.get("speed.speedup")
    pairing = "" if job.get("speed.paired") else " (unpaired: the two were timed one after another)"
    if speedup["low"] > 1:
        verdict = "faster than the unmodified model"
    elif speedup["high"] < 1:
        verdict = "slower than the unmodified model"
    else:
        verdict = "not measurably faster or slower than the unmodified model"
    return (
        f"- `{job.label}` is **{verdict}**: speedup {interval(speedup)}{pairing}. "
        f"Kernel that ran: {job.content['kernel']}."
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
