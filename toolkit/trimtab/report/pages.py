"""report.md and report.html, written from what a report says."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trimtab.report.document import Document
from trimtab.report.figures import code
from trimtab.report.plots.paper import svg
from trimtab.report.table import Cell, markdown

CODE = r"(?<!`)(`+)(?!`) ?(.+?) ?(?<!`)\1(?!`)"


def write_markdown(document: Document) -> str:
    """Return report.md, which shows the PNG files beside it."""
    return _render("report.md.j2", document)


def write_html(document: Document) -> str:
    """Return report.html: one file, with every plot in it."""
    return _render("report.html.j2", document)


def _render(template: str, document: Document) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "table": markdown,
        "inline": inline,
        "sort": sort_key,
        "code": code,
        "oneline": lambda text: " ".join(text.split()),
    }
    environment.globals["svg"] = lambda plot, panel: Markup(svg(plot, panel))
    return environment.get_template(template).render(report=document)


def inline(text: str) -> Markup:
    """Return a text's code and bold as HTML, all else escaped."""
    parts = [escape(part.replace("\\|", "|")) for part in re.split(CODE, text)]
    for number in range(2, len(parts), 3):  # text, backticks, code, text, and so on
        told = re.sub(r"([,./])(?=\w)", r"\1<wbr>", parts[number])  # where a line may end
        parts[number - 1 : number + 1] = ["", f"<code>{told}</code>"]
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", "".join(parts)))


def sort_key(cell: Cell) -> str:
    """Return what a column of an HTML table is sorted by."""
    return "" if cell.sort is None else str(cell.sort)
