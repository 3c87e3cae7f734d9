"""Figures as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

NONE = "-"
NAMED = 2  # more than that are counted


def code(text: str) -> str:
    """Return a text as Markdown's code, backticks that it holds included."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def is_interval(value: Any) -> bool:
    return isinstance(value, dict) and {"estimate", "low", "high"} <= value.keys()


def middle(value: Any) -> Any:
    """Return the estimate of an interval, and anything else as it is."""
    return value["estimate"] if is_interval(value) else value


def interval(value: Mapping[str, float] | None, form: str = ".3f", scale: float = 1) -> str:
    """Format an estimate and its 95 % interval, or a dash where there is none."""
    if value is None:
        return NONE
    middle, low, high = (number(value[name], form, scale) for name in ("estimate", "low", "high"))
    return f"{middle} [{low}, {high}]"


def number(value: float | None, form: str, scale: float = 1) -> str:
    """Format a number, without a sign where it is rounded to zero; a dash where there is none."""
    if value is None:
        return NONE
    text = f"{value * scale if scale != 1 else value:{form}}"
    return re.sub(r"^[-](?=0(\.0+)?%?$)", "+" if form.startswith("+") else "", text)


def written(value: Any, form: str, scale: float = 1) -> str:
    """Format whatever a field may hold: an interval, a number, a text or nothing."""
    if is_interval(value):
        return interval(value, form, scale)
    if value is None or isinstance(value, str):
        return value or NONE
    return number(value, form, scale)


def span(values: Iterable[float], form: str = ",.0f") -> str:
    """Return a number, or the least and the most of several; nothing of none."""
    found = sorted(values)
    ends = dict.fromkeys(f"{value:{form}}" for value in (*found[:1], *found[-1:]))
    return " to ".join(ends)


def listed(words: list[str]) -> str:
    """Return words as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def named(labels: list[str]) -> str:
    """Return a few labels as a title lists them, and of more the first and how many."""
    more = f"{labels[0]} and {len(labels) - 1} more"
    return listed(labels) if len(labels) <= NAMED else more
