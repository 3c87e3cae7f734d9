"""What the speed of a stack with drafts depends on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from trimtab.report.attribution import part_of
from trimtab.report.figures import code, interval
from trimtab.report.job import Job
from trimtab.report.marks import mark, marked

SPEED, PROPOSED = "speed.speedup", "engine.proposed"


def condition(job: Job, rows: Sequence[Job]) -> str:
    """Return what text the speed of a stack holds for; empty where it made no drafts."""
    proposed, right = job.get(PROPOSED), job.get("engine.accepted")
    if not proposed or right is None:
        return ""
    told = (
        f"this holds for text like the corpus, of which {right:,.0f} of {proposed:,.0f} drafted "
        "tokens were right; with none right, "
    )
    other = _without_drafts(job, rows)
    if other is None:
        return f"{told}drafts gain nothing"
    own = mark(SPEED, other, rows)
    speed = "" if own else f", {interval(other.get(SPEED), '.2f')} times"
    return f"{told}the speed is at most that of {marked(code(other.label), own)}{speed}"


def _without_drafts(job: Job, rows: Sequence[Job]) -> Job | None:
    """Return the largest part of a stack that was measured and makes no drafts."""
    for count in range(len(job.methods) - 1, 0, -1):
        for methods in combinations(job.methods, count):
            found = part_of(job, methods, rows)
            if found is not None and found.get(SPEED) and not found.get(PROPOSED):
                return found
    return None
