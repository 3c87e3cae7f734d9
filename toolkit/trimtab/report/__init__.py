"""The report of a job or a sweep, always rebuilt from the result.json files on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.report.build import build_report, draw

__all__ = ["build_report", "draw"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that the command can say what stops its imports."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trimtab.report import build

    return getattr(build, name)
