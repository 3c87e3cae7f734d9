"""What a metric declares its columns and charts with, for the report to show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One figure of every job in a table.

    Parameters
    ----------
    title : str
    field : str
        Dotted name of a number, a text, or an interval (`estimate`, `low`, `high`).
    form : str
        Format specification of a number.
    meaning : str
        One sentence for the legend; empty where the title says it all.
    scale : float
        What the field is multiplied by.
    always : bool
        Whether the column stays where no job has the figure.
    """

    title: str
    field: str
    form: str = ".3f"
    meaning: str = ""
    scale: float = 1.0
    always: bool = False


@dataclass(frozen=True)
class Series:
    """One panel of a chart: a figure of every job, beside that of the unmodified model.

    Parameters
    ----------
    title : str
        With the unit.
    field : str
        Dotted name of a number or an interval.
    form : str
        Format specification of the values written beside the marks.
    better : str
        ``more`` or ``less``.
    beside : str
        Dotted name of the same figure of the unmodified model; empty where `origin` stands for it.
    origin : float or None
        Value that means "as the unmodified model"; None for amounts, which are drawn from 0.
    scale : float
        What the fields are multiplied by.
    finding : str
        The chart's title where this panel is the first with a stack that is better than the
        unmodified model, with `{best}` and `{value}`.
    """

    title: str
    field: str
    form: str
    better: str = "more"
    beside: str = ""
    origin: float | None = None
    scale: float = 1.0
    finding: str = ""


@dataclass(frozen=True)
class Chart:
    """A plot that compares all jobs.

    Parameters
    ----------
    file : str
    nothing : str
        Title where no panel has a stack that is better than the unmodified model.
    panels : tuple of Series
        What no job has is not drawn.
    """

    file: str
    nothing: str
    panels: tuple[Series, ...]
