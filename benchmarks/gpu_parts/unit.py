"""What the benchmark consists of: small measurements, each of which is kept by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Options = argparse.Namespace
Result = dict[str, Any]

NO_AIM = "–"


class Row(NamedTuple):
    """A line of the summary: what was measured, what was found, and what it should reach."""

    what: str
    found: str
    aim: str = NO_AIM


@dataclass(frozen=True)
class Unit:
    """One measurement.

    Parameters
    ----------
    name : str
        Says all that tells it from the others.
    measure : callable
        Returns JSON values: ``skipped`` with a reason where it cannot run on this device, and under
        ``failed`` the errors of what failed while the rest went on.
    rows : callable
        Returns the summary's lines for what `measure` returned.
    """

    name: str
    measure: Callable[[], Result]
    rows: Callable[[Result], list[Row]]
