"""The report of a job or a sweep, always rebuilt from the result.json files on disk."""

from trimtab.report.build import build_report, draw

__all__ = ["build_report", "draw"]
