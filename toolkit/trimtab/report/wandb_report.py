"""A sweep as a W&B Report: ``python -m trimtab.report DIR --wandb ENTITY/PROJECT``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from trimtab.config import TrackingConfig, TrackingMode
from trimtab.errors import TrimtabError
from trimtab.progress import say
from trimtab.report.load import Job, load_jobs
from trimtab.tracking.job import Record
from trimtab.tracking.summary import records, write_summary

SPEEDUP, BITS = "speed.speedup", "quality.bits_per_byte.difference"
# What has an interval, and what is one number: a bar plot of each, where any job has it.
INTERVALS = {
    SPEEDUP: "Speedup over the unmodified model",
    BITS: "Change in bits per byte (lower is better)",
    "serving.speedup": "Speedup in serving, over padded generation",
    "speed.decode_tokens_per_s.candidate": "Decode tokens per second",
}
NUMBERS = {
    "tokens.saving": "Tokens saved, share of the unmodified model's",
    "kv.committed_bytes": "KV cache committed, bytes",
}
WIDTH, HEIGHT, LONGEST_TITLE = 12, 8, 128  # of a panel, in a row of 24; of a title


def publish(folders: Sequence[Path], destination: str) -> str:
    """Publish the summary run and the W&B Report of a sweep, and return the Report's address.

    Parameters
    ----------
    folders : sequence of Path
        That of the sweep alone.
    destination : str
        ``ENTITY/PROJECT``.

    Raises
    ------
    TrimtabError
        If there are several folders, the destination is none, the jobs have no runs, nobody is
        logged in, the package wandb-workspaces is missing, or W&B refuses.
    """
    entity, _, project = destination.partition("/")
    if not entity or not project or "/" in project:
        raise TrimtabError(f"--wandb {destination}: expected ENTITY/PROJECT")
    folder, *others = folders
    if others:
        raise TrimtabError(f"--wandb {destination}: publishes one sweep: name one folder")
    jobs = records(folder)
    if not jobs or jobs[0].group is None:
        raise TrimtabError(
            f"--wandb {destination}: {folder} is not the folder of a sweep whose jobs have W&B "
            "runs: name one made by evaluate.py -m, without tracking.mode=disabled"
        )
    _library()
    wandb.setup(wandb.Settings(mode="online", silent=True))
    if not wandb.login(prompt=False, verify=False):
        raise TrimtabError(f"--wandb {destination}: not logged in: run `wandb login` first")
    config = TrackingConfig(
        mode=TrackingMode.online, project=project, entity=entity, folder=jobs[0].folder
    )
    try:
        write_summary(folder, config, jobs[0].group)
        report = build(folder, entity, project, jobs[0].group).save()
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrimtabError(f"--wandb {destination}: W&B refuses: {reason}") from error
    _remind(jobs)
    return str(report.url)


def build(folder: Path, entity: str, project: str, group: str) -> Any:
    """Return the W&B Report of a sweep, not saved yet.

    Raises
    ------
    TrimtabError
        If the package wandb-workspaces is missing.
    """
    library = _library()
    jobs = load_jobs(folder)
    plots = [f"plots/{path.stem}" for path in sorted((folder / "report").glob("*.png"))]
    upper, lower = (library.Layout(y=HEIGHT * n, w=2 * WIDTH, h=HEIGHT) for n in range(2))
    table = library.WeavePanelSummaryTable(table_name="jobs", layout=upper)
    browser = library.MediaBrowser(title="Plots", media_keys=plots, num_columns=2, layout=lower)
    return library.Report(
        entity=entity,
        project=project,
        title=f"Trimtab {group.replace('/', ' ')}"[:LONGEST_TITLE],  # part of its address
        description="Every stack beside the unmodified model.",
        width="fluid",
        blocks=[
            library.MarkdownBlock(text=_text(folder)),
            library.H2(text="Every run"),
            library.PanelGrid(
                runsets=[_runs(library, entity, project, group, "evaluate")],
                panels=_panels(library, [job for job in jobs if job.ok]),
            ),
            library.H2(text="The whole sweep, failed jobs and intervals included"),
            library.PanelGrid(
                runsets=[_runs(library, entity, project, group, "summary")],
                panels=[table, browser],
            ),
        ],
    )


def _library() -> Any:
    try:
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise TrimtabError(
            "a W&B Report needs the package wandb-workspaces: pip install 'trimtab[reports]'"
        ) from error
    return v2


def _runs(library: Any, entity: str, project: str, group: str, kind: str) -> Any:
    """Return a run set: the runs of one kind in the sweep's group, the fastest first."""
    # The library reads this as Python, after replacing signs such as = in texts too.
    name = "".join(one if one.isalnum() else f"\\U{ord(one):08x}" for one in group)
    columns = [f"summary:{field}.estimate" for field in INTERVALS]
    return library.Runset(
        entity=entity,
        project=project,
        name=f"{kind}: {group}",
        filters=f"Metric('Group') == '{name}' and Metric('JobType') == '{kind}'",
        order=[library.OrderBy(library.SummaryMetric(f"{SPEEDUP}.estimate"))],
        pinned_columns=["run:displayName", "run:state", *columns],
    )


def _panels(library: Any, jobs: Sequence[Job]) -> list[Any]:
    """Return a bar plot of each figure, and quality against speed, where jobs have them."""
    repeated = _repeated(jobs)
    bars = {field: _bars(field, repeated) for field in INTERVALS}
    bars |= {field: {"metrics": [field], **_grouped(repeated)} for field in NUMBERS}
    titles = INTERVALS | NUMBERS
    shown = [{"title": titles[one], **bars[one]} for one in bars if _any_has(jobs, one)]
    panels = [library.BarPlot(**one, layout=_place(library, n)) for n, one in enumerate(shown)]
    if _any_has(jobs, BITS) and _any_has(jobs, SPEEDUP):
        scatter = library.ScatterPlot(
            title="Quality against speed: right and low is better",
            x=library.SummaryMetric(f"{SPEEDUP}.estimate"),
            y=library.SummaryMetric(f"{BITS}.estimate"),
            layout=_place(library, len(panels)),
        )
        panels.append(scatter)
    return panels


def _repeated(jobs: Sequence[Job]) -> bool:
    """Return whether jobs of one name are repeats that differ in their seed alone."""
    told = [(str(job.content["label"]), *job.content.get("overrides", ())) for job in jobs]
    kinds = {tuple(one for one in words if not one.startswith("seed=")) for words in told}
    return len(jobs) > len(kinds) == len({words[0] for words in told})


def _bars(field: str, repeated: bool) -> dict[str, Any]:
    """Return what a bar plot of a figure with an interval shows.

    W&B draws error bars over runs of one name. Where each has a name of its own, the ends of its
    95 % interval are bars beside its estimate.
    """
    if repeated:
        return {"metrics": [f"{field}.estimate"], **_grouped(repeated)}
    return {"metrics": [f"{field}.{end}" for end in ("low", "estimate", "high")]}


def _grouped(repeated: bool) -> dict[str, str]:
    how = {"groupby": "Name", "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    return how if repeated else {}


def _any_has(jobs: Sequence[Job], field: str) -> bool:
    return any(job.get(field) is not None for job in jobs)


def _place(library: Any, number: int) -> Any:
    """Return where the panel of this number stands, two in a row."""
    return library.Layout(x=WIDTH * (number % 2), y=HEIGHT * (number // 2), w=WIDTH, h=HEIGHT)


def _text(folder: Path) -> str:
    """Return the report's text, without the plots: they are files beside it."""
    text = (folder / "report" / "report.md").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("!["))


def _remind(jobs: Sequence[Record]) -> None:
    """Say which runs the Report cannot show yet."""
    if waiting := [job.directory for job in jobs if job.waits]:
        say(f"These runs are in the Report once they are uploaded: wandb sync {' '.join(waiting)}")
