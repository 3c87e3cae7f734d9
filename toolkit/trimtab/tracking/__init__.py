"""Weights & Biases: one run a job and one a sweep, offline unless asked otherwise."""

from trimtab.tracking.job import Job, configuration
from trimtab.tracking.log import Log
from trimtab.tracking.run import check, run
from trimtab.tracking.summary import summarise

__all__ = ["Job", "Log", "check", "configuration", "run", "summarise"]
