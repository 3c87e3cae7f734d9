"""Plots as PNG files, and their panels as SVG that follows the page's colours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.figure import Figure

from trimtab.files import replacing
from trimtab.report.plots.panel import ACCENT, FAINT, INK, MUTED, PAPER, Panel, Plot

GUTTER = 0.3  # inches
HEAD = 0.15, 0.16  # inches above the axes for the panel's title, and for each of its lines
LETTERS_PER_INCH = 8.2, 11.5, 14.5  # of the plot's title, of a panel's, and of small print
COLOURS = {INK: "ink", MUTED: "muted", ACCENT: "accent", FAINT: "faint", PAPER: "paper"}


def write_png(plot: Plot, path: Path) -> None:
    """Write all panels as one picture, its title above and its note below."""
    columns = min(len(plot.panels), plot.columns)
    lines = [plot.panels[at : at + columns] for at in range(0, len(plot.panels), columns)]
    heads = [HEAD[0] + HEAD[1] * max(len(_titled(plot, panel)) for panel in line) for line in lines]
    heights = [
        head + max(panel.height + panel.bottom for panel in line)
        for head, line in zip(heads, lines, strict=True)
    ]
    width = columns * (plot.width + GUTTER) + GUTTER
    title = wrap(plot.title, int((width - 2 * GUTTER) * LETTERS_PER_INCH[0]))
    note = wrap(plot.note, int((width - 2 * GUTTER) * LETTERS_PER_INCH[2]))
    head, foot = 0.3 + 0.25 * len(title), 0.25 + 0.14 * len(note)
    height = head + sum(heights) + GUTTER * (len(lines) - 1) + foot
    with _style(plot.file):
        figure = Figure(figsize=(width, height), facecolor="white")
        style: dict[str, Any] = {"va": "top", "color": INK}
        left = GUTTER / width
        figure.text(left, 1 - 0.15 / height, "\n".join(title), fontsize=13, fontweight="bold",
                    linespacing=1.35, **style)  # fmt: skip
        figure.text(left, (foot - 0.08) / height, "\n".join(note), fontsize=7, va="top",
                    color=MUTED, linespacing=1.4)  # fmt: skip
        top = height - head
        for line, above, tall in zip(lines, heads, heights, strict=True):
            for number, panel in enumerate(line):
                start = GUTTER + number * (plot.width + GUTTER)
                figure.text(start / width, top / height, "\n".join(_titled(plot, panel)),
                            fontsize=9, fontweight="bold", linespacing=1.3, **style)  # fmt: skip
                _place(figure, plot, panel, start, top - above)
            top -= tall + GUTTER
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def svg(plot: Plot, panel: Panel) -> str:
    """Return one panel as an SVG element whose colours are the page's CSS variables."""
    height = panel.height + panel.bottom
    with _style(f"{plot.file} {panel.title}"):
        figure = Figure(figsize=(plot.width, height + 0.05))
        _place(figure, plot, panel, 0, height)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.S)
    drawn = re.sub(r"<!--.*?-->\n?", "", drawn, flags=re.S)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', drawn))
    drawn = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", drawn)
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn).replace("xlink:href", "href")
    for colour, name in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    label = f'role="img" aria-label={quoteattr(f"{panel.title}: {plot.title}")}'
    size = re.search(r'viewBox="[^"]*"', drawn)
    assert size is not None
    return re.sub(r"<svg[^>]*>", lambda _: f"<svg {label} {size[0]}>", drawn, count=1)


def _titled(plot: Plot, panel: Panel) -> list[str]:
    return wrap(panel.title, int(plot.width * LETTERS_PER_INCH[1]))


def _place(figure: Figure, plot: Plot, panel: Panel, start: float, top: float) -> None:
    """Draw a panel whose axes' upper edge is at `top`, in inches from the lower left corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (
            (start + panel.left) / width,
            (top - panel.height) / height,
            (plot.width - panel.left - panel.right) / width,
            panel.height / height,
        )
    )
    axes.patch.set_visible(False)
    panel.draw(axes)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Have a figure be the same bytes every time, and no label read as a formula.

    What a matplotlibrc of the user's says is none of it.
    """
    settings: Any = {
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }
    own = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(own | settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # labels are users' own
        yield
