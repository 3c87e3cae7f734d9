"""What follows a compressed prompt, beside the whole prompt and the prompt cut."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from trimtab.report.columns import COMPRESSION
from trimtab.report.figures import listed
from trimtab.report.job import Job
from trimtab.report.plots.panel import ACCENT, INK, MUTED, Panel, Plot, Row, Rows, numbers, plain
from trimtab.report.table import cell

FILE = "prompt_compression.png"


def compression_plot(jobs: Sequence[Job], note: str) -> Plot | None:
    """Return the plot of the jobs whose stack compresses prompts, or None."""
    having = [job for job in jobs if job.get("quality.compression") is not None]
    if not having:
        return None
    bits = [job.get("quality.compression.bits_per_byte") for job in having]
    rows = Rows([Row(job.label, f"{one['candidate']:.3f}, cut {one['prompt_cut']:.3f}")
                 for job, one in zip(having, bits, strict=True)])  # fmt: skip

    def draw(axes: Axes) -> None:
        plain(axes)
        for one, place in zip(bits, rows.marks, strict=True):
            axes.plot(one["baseline"], place, "|", color=INK, markersize=11, markeredgewidth=1.6)
            axes.plot(one["prompt_cut"], place, "x", color=MUTED, markersize=6)
            difference = one["difference"]
            error = [[difference["estimate"] - difference["low"]],
                     [difference["high"] - difference["estimate"]]]  # fmt: skip
            axes.errorbar(one["candidate"], place, xerr=error, fmt="o", color=ACCENT, ecolor=INK,
                          markersize=5, capsize=2.5, linewidth=1.2)  # fmt: skip
        axes.margins(x=0.06)
        rows.label(axes)
        axes.set_xlabel("| whole prompt   × prompt cut   ● compressed", fontsize=7.5, color=MUTED)

    beating = [job.label for job in having if job.get("quality.compression.beats_control")]
    title = (f"Compressed prompts beat cut ones with {listed(beating)}" if beating else
             "No compressed prompt beats one that was cut to its length")  # fmt: skip
    lines = [(job.label, [cell(job.get(one.field), one.form) for one in COMPRESSION])
             for job in having]  # fmt: skip
    table = numbers("prompts", [one.title for one in COMPRESSION], lines)
    panel = Panel("bits per byte of what follows the prompt (less is better)", rows.height, draw,
                  table, bottom=0.48)  # fmt: skip
    return Plot(FILE, title, (panel,), note)
