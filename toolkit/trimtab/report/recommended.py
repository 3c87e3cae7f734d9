"""Which stack to use when, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimtab.report.balance import balance
from trimtab.report.choice import choices
from trimtab.report.drafts import condition
from trimtab.report.figures import code, interval, listed
from trimtab.report.job import Job
from trimtab.report.marks import mark, marked
from trimtab.report.rules import PACE, Rule, doubt


def recommended(group: Sequence[Job]) -> Iterator[tuple[str, str, str]]:
    """Yield a wish, the stack for it and the rule; what a stack costs is told once."""
    told_of: list[Job] = []
    for choice in choices(group):
        best, rule = choice.best, choice.rule
        figures = "" if best is None else _figures(best, rule, group)
        if choice.lacking is not None:
            reasons = dict.fromkeys(row.reason(choice.lacking) for row in group)
            why = "; ".join(filter(None, reasons)) or "the jobs left it out"
            told = f"no answer, as what decides it was not measured: {why}"
        elif best is None and choice.noisy:
            noisy = listed([code(row.label) for row in choice.noisy])
            first = max(choice.noisy, key=rule.value)
            told = f"cannot be said: the measurement was too noisy for {noisy}. "
            told += f"The best figure, of {code(first.label)}: {doubt(rule, first)}"
        elif best is None and choice.apart:
            told = "cannot be said"
        elif best is None:
            told = "no stack: stay with the unmodified model"
        elif best in told_of:
            told = f"**{code(best.label)}**, as above: {figures}"
        else:
            told_of.append(best)
            cost = "; ".join(balance(best, group).cost)
            told = f"**{code(best.label)}**: {figures}; "
            told += f"{holds}; " if (holds := condition(best, group)) else ""
            told += f"it costs: {cost}" if cost else "nothing measured got worse"
        if choice.equal:
            equal = listed([code(row.label) for row in choice.equal])
            told += f". No measurable difference from it: {equal}"
        if best is not None:
            told += _open("Too noisy to rank", choice.noisy, rule)
            told += _open("Not found to differ from the unmodified model", choice.unclear, rule)
        if choice.apart:
            apart = listed([code(row.label) for row in choice.apart])
            told += f". Not ranked, as the machine was not the same for it: {apart}"
        yield rule.wish, told, rule.how


def _figures(best: Job, rule: Rule, group: Sequence[Job]) -> str:
    """Return what a stack is best at; the speed beside memory is marked where it needs it."""
    return marked(rule.told(best), mark(PACE[rule.held], best, group) if rule.held else "")


def _open(why: str, rows: Sequence[Job], rule: Rule) -> str:
    """Return why some rows are not ranked, and that they may be better; nothing of none."""
    figure = str(rule.figure)
    told = [f"{code(row.label)} ({interval(row.get(figure), '.2f')})" for row in rows]
    return f". {why}, but may be better: {listed(told)}" if told else ""
