"""Build a report: what is on disk as pages for people, and as files for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

from trimtab.errors import TrimtabError
from trimtab.files import REPORT, replacing
from trimtab.report.attribution import Attribution, attributions
from trimtab.report.choice import choices
from trimtab.report.columns import CHARTS, DASHBOARD
from trimtab.report.data import csv_table, json_summary
from trimtab.report.document import document
from trimtab.report.job import Job
from trimtab.report.load import load, load_jobs, state
from trimtab.report.notices import facts
from trimtab.report.pages import write_html, write_markdown
from trimtab.report.plots import compression, pareto, serving, single, waterfall
from trimtab.report.plots.comparison import comparison
from trimtab.report.plots.dashboard import dashboard
from trimtab.report.plots.panel import Plot
from trimtab.report.plots.paper import write_png
from trimtab.report.seeds import rows as rows_of
from trimtab.report.verdict import groups_of, names_of
from trimtab.sweep_state import jobs_without_end, more_jobs

COMPARISON = Path("outputs/comparison")
SUMMARY = "comprehensive_benchmark_results.json"  # written first: it tells a report's folder
ELSEWHERE = "python -m trimtab.report --out"
# Every picture that a report may hold: those that the jobs have nothing for are removed.
PICTURES = (
    DASHBOARD,
    *(chart.file for chart in CHARTS),
    *(module.FILE for module in (compression, pareto, serving, waterfall)),
    *(name.format("*") for name in (single.SPARSITY, single.OPERATING)),
)


def build_report(*folders: Path, out: Path | None = None, last_draws: bool = False) -> Path:
    """Write one report of the jobs below `folders` and return the path of its report.md.

    The same files on disk give the same report. Where a job ends meanwhile, the report is built
    again, so that of several that build it at once the last one is right.

    Parameters
    ----------
    folders : Path
        Output folders of jobs and of sweeps.
    out : Path, optional
        Where the report goes; where None, ``report`` in the folder, or `COMPARISON` for several.
    last_draws : bool
        Whether plots are drawn only once all jobs of the one sweep have ended: they take seconds.

    Raises
    ------
    TrimtabError
        If a folder holds no job; or a file is where the report's is to be, or, in a folder that is
        no report's, somebody's own files.
    """
    if named := next((one for one in folders if one.is_file()), None):
        raise TrimtabError(f"{named} is a file: name the folder of the job or sweep")
    target = out or (folders[0] / REPORT if len(folders) == 1 else COMPARISON)
    if file := next((one for one in (target, *target.parents) if one.is_file()), None):
        raise TrimtabError(
            f"{target}: no folder for the report: {file} is a file; remove it, or name another "
            f"folder: {ELSEWHERE}"
        )
    if out is not None or len(folders) > 1:
        _require_own(target)
    while True:
        found = state(folders)
        jobs, left_out = load(*folders)
        more = more_jobs(folders[0]) if last_draws else 0
        if not last_draws:
            left_out += [line for root in folders if (line := _without_end(root))]
        _write(jobs, target, more, left_out)
        if state(folders) == found:
            return target / "report.md"


def _require_own(target: Path) -> None:
    """Refuse a folder that holds files, and among them none that every report has."""
    others = [path.name for path in target.glob("[!.]*")]
    if others and SUMMARY not in others:
        raise TrimtabError(
            f"{target}: holds {min(others)}, and no report, which would be replaced: name a folder "
            f"that is new or a report's: {ELSEWHERE}"
        )


def _without_end(root: Path) -> str:
    """Say that jobs of a sweep were not run to their end; nothing where all were."""
    jobs = jobs_without_end(root)
    if jobs == 0:
        return ""
    return (
        f"{root}: {jobs} of the sweep's jobs {'has' if jobs == 1 else 'have'} no result; unless it "
        f"still runs: `python evaluate.py resume={quote(str(root))}`"
    )


def draw(job: Path, target: Path) -> None:
    """Write the pictures of one job alone."""
    rows = load_jobs(job)
    for plot in _plots(rows, attributions(rows)):
        write_png(plot, target / plot.file)


def _write(jobs: Sequence[Job], target: Path, more: int, left_out: Sequence[str]) -> None:
    """Write all files of a report; with more jobs to come, without pictures."""
    rows = rows_of(jobs)
    attributed = attributions(rows)
    plots = list(_plots(rows, attributed))
    said = document(rows, attributed, plots, more, left_out)
    _write_text(target / SUMMARY, json_summary(jobs, rows, attributed))
    drawn = [] if more else plots
    for plot in drawn:
        write_png(plot, target / plot.file)
    files = {plot.file for plot in drawn}
    for leftover in {path for name in PICTURES for path in target.glob(name)}:
        if leftover.name not in files:
            leftover.unlink(missing_ok=True)  # another job may have
    _write_text(target / "results.csv", csv_table(jobs))
    _write_text(target / "report.md", write_markdown(said))
    _write_text(target / "report.html", write_html(said))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")  # folders have any name


def _plots(rows: Sequence[Job], attributed: Sequence[Attribution]) -> Iterator[Plot]:
    """Yield the plots that have something to show."""
    measured = [row for row in rows if row.ok]
    if not measured:
        return
    note = "; ".join(dict.fromkeys(map(facts, measured)))
    groups = groups_of(measured)
    found = [*zip(names_of(groups), map(choices, groups), strict=True)]
    own = {number: row for number, row in zip(_numbers(rows), rows, strict=True) if row.ok}
    drawn = (
        dashboard(measured, found, note),
        *(comparison(chart, measured, note) for chart in CHARTS),
        pareto.quality_plot(measured, note),
        waterfall.waterfall_plot(attributed, note),
        serving.serving_plot(measured, note),
        compression.compression_plot(measured, note),
        *single.sparsity_maps(own),
        *(single.operating_points(row, number) for number, row in own.items()),
    )
    yield from (_marked(plot, measured) for plot in drawn if plot is not None)


def _marked(plot: Plot, rows: Sequence[Job]) -> Plot:
    """Return a plot whose title says that weights are random, where those of any row are."""
    random = [row.random_weights for row in rows]
    if not any(random):
        return plot
    among = "" if all(random) else " among the models"
    return replace(plot, title=f"Random weights{among}: {plot.title}")


def _numbers(rows: Sequence[Job]) -> list[int]:
    """Return the numbers that the folders of one sweep's jobs have; else the places of the rows."""
    inside = all(row.folder.parent == rows[0].root for row in rows)
    if inside and all(row.folder.name.isdigit() for row in rows):
        return [int(row.folder.name) for row in rows]
    return [*range(len(rows))]
