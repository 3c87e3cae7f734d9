"""Build ``report/``: the table, the plots and what to know when reading them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.files import REPORT, replacing
from trimtab.report.load import Job, load_jobs
from trimtab.report.plots import (
    compression_plot,
    operating_points_plot,
    quality_plot,
    sparsity_map,
    speedup_plot,
    token_plot,
)
from trimtab.report.table import code, compression_table, csv_table, interval, markdown_table

BITS = "quality.bits_per_byte"

PLOTS_OF_ONE: tuple[tuple[str, str, Callable[[Job, Path], None]], ...] = (
    ("sparsity", "sparsity_by_layer_{}.png", sparsity_map),
    ("vocabulary.operating_points", "vocabulary_operating_points_{}.png", operating_points_plot),
)
# What is drawn of the jobs that have a field, where there are any.
PLOTS = (
    ("speed.speedup", "all_methods_speedup_comparison.png", speedup_plot),
    ("tokens.steps", "all_methods_token_comparison.png", token_plot),
    ("quality.bits_per_byte", "quality_versus_speed.png", quality_plot),
    ("quality.compression", "prompt_compression.png", compression_plot),
)


PROMPT_CUT = (
    "Bits per byte of the text that follows a prompt, in base tokens: after the whole prompt "
    "under the unmodified model; after the prompt in the stack's tokens; and, under the "
    "unmodified model again, after the prompt with its oldest tokens cut until it is as short. "
    "A stack that does not beat the cut is no way to shorten prompts."
)


def build_report(folder: Path) -> Path:
    """Write the report of the jobs below `folder` and return the path of its report.md.

    The same files on disk give the same report.

    Raises
    ------
    TrimtabError
        If there is no job.
    """
    jobs = load_jobs(folder)
    target = folder / REPORT
    target.mkdir(exist_ok=True)
    measured = [job for job in jobs if job.ok]
    plots = []
    for field, name, draw in PLOTS:
        having = [job for job in measured if job.get(field) is not None]
        if having:
            draw(having, target / name)
            plots.append(name)
    for field, pattern, draw_one in PLOTS_OF_ONE:
        for job in measured:
            if job.get(field):
                name = pattern.format(jobs.index(job))
                draw_one(job, target / name)
                plots.append(name)
    ours = [name for _, name, _ in PLOTS] + [name.format("*") for _, name, _ in PLOTS_OF_ONE]
    for leftover in {path for name in ours for path in target.glob(name)}:
        if leftover.name not in plots:
            leftover.unlink(missing_ok=True)  # another job may have
    _write(target / "results.csv", csv_table(jobs))
    _write(target / "report.md", _markdown(jobs, measured, plots))
    return target / "report.md"


def _markdown(jobs: Sequence[Job], measured: Sequence[Job], plots: Sequence[str]) -> str:
    parts = ["# Trimtab report"]
    for machine in dict.fromkeys(_machine(job) for job in measured):
        parts.append(machine)
    parts += [markdown_table(jobs), _reading()]
    parts += dict.fromkeys(_unmeasured(job) for job in measured if not job.get(BITS))
    parts += dict.fromkeys(_set_aside(job) for job in measured if job.get("generation.set_aside"))
    parts += [_verdict(job) for job in measured if job.content["methods"]]
    compressed = [job for job in measured if job.get("quality.compression") is not None]
    if compressed:
        parts += [compression_table(compressed), PROMPT_CUT]
        parts += [_compression_verdict(job) for job in compressed]
    parts += [f"![{Path(name).stem}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


def _machine(job: Job) -> str:
    environment: dict[str, Any] = job.content["environment"]
    packages = environment["packages"]
    hardware = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    return (
        f"{job.get('model.name')} ({job.get('model.dtype')}) on `{job.get('corpus.name')}`, "
        f"measured on {hardware}, {_pages(job)}; torch {packages['torch']}, transformers "
        f"{packages['transformers']}, commit {str(environment['commit'])[:12]}."
    )


def _pages(job: Job) -> str:
    """Return where the weights of both models lay, by what was counted."""
    held: dict[str, int] = job.get("memory.parameter_bytes")
    weights = sum(held.values()) if job.get("speed.paired") else max(held.values())
    share = job.get("memory.huge_page_bytes") / weights
    if share > 0.8:
        return "weights in huge pages"
    return "weights in ordinary pages" if share < 0.2 else "weights partly in huge pages"


def _reading() -> str:
    return (
        "Every row is measured against the unmodified model under transformers' own `generate`. "
        "Brackets are 95 % bootstrap intervals over raw samples that each job's `result.json` "
        "keeps. *Same text*: share of the baseline's greedy text before the first difference. "
        "*Other domain*: the change on source files of Python's standard library. *Tokens saved*: "
        "of prompts and outputs. *Steps saved*: of the forward passes for the same text. "
        "*Bytes needed*: weight bytes of the decoder blocks that the activations kept need, "
        "transforms counted, over dense, on the text that was scored. `baseline` compares the "
        "model with its own copy: its interval is the noise of the measurement. Stacks with "
        "`vattention` or drafts run on Trimtab's own engine: what the engine alone gives is the "
        "row `vattention`. docs/results.md explains every field."
    )


def _unmeasured(job: Job) -> str:
    reason = next(why for name, why in job.content["reasons"].items() if BITS.startswith(name))
    return f"The quality of {job.get('model.name')} was **not measured**: {reason}."


def _set_aside(job: Job) -> str:
    asked: dict[str, Any] = job.get("generation.set_aside")
    settings = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in asked.items())
    return (
        f"The generation config of {job.get('model.name')} asks for {settings}: set aside for both "
        "models, which generated by the settings of the job alone."
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
        f"- {code(job.label)} is **{verdict}**: speedup {interval(speedup)}{pairing}. "
        f"Kernel that ran: {job.content['kernel']}."
        + (f" Decode steps ran as: {step}." if (step := job.get("engine.decode_step")) else "")
    )


def _compression_verdict(job: Job) -> str:
    found = job.get("quality.compression")
    tokens, bits = found["tokens"], found["bits_per_byte"]
    verdict = "beats" if found["beats_control"] else "does not beat"
    return (
        f"- {code(job.label)} **{verdict} the prompt cut**: "
        f"of {tokens['baseline']} prompt tokens it "
        f"saves {1 - tokens['candidate'] / tokens['baseline']:.1%}, and the text after them needs "
        f"{bits['candidate']:.3f} bits per byte, {bits['prompt_cut']:.3f} after a cut prompt "
        f"(difference {interval(bits['difference'], '+.4f')}) and {bits['baseline']:.3f} after "
        "the whole one."
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
