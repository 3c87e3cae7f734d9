"""What a metric is: raw samples of the models compared, and the figures made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar, Generic, TypeVar

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Chart, Column
from trimtab.evaluation.job import Job
from trimtab.evaluation.result import Result

T = TypeVar("T")

CALLED = {"baseline": "unmodified model", "candidate": "stack"}  # in a line of progress
Rows = list[dict[str, Any]]  # a table of raw samples


class Both(TypedDict, Generic[T]):
    """A figure of both contenders."""

    baseline: T
    candidate: T


class Metric:
    """One metric of one job. It is made before anything is measured, and refuses what cannot be.

    Parameters
    ----------
    job : Job

    Attributes
    ----------
    fields : mapping of str to type
        What it writes into result.json: dotted names, and the type of each. One that it does not
        write is null, with a reason.
    columns : tuple of Column
        What the report's table shows of them.
    charts : tuple of Chart
        Plots that the report draws of them.
    needs : tuple of type
        Metrics whose samples it reads; they come before it.
    reads_weights : bool
        Whether it means nothing for random weights.
    generates : bool
        Whether it is measured within `Contender.generating`, an engine at work where the stack
        needs one; else the models are free for other uses.
    times : bool
        Whether it measures time or energy: no other process of the user does meanwhile.
    """

    fields: ClassVar[Mapping[str, Any]] = {}
    columns: ClassVar[tuple[Column, ...]] = ()
    charts: ClassVar[tuple[Chart, ...]] = ()
    needs: ClassVar[tuple[type[Metric], ...]] = ()
    reads_weights: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    times: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        self.job = job

    def measure(self, contenders: Sequence[Contender]) -> None:
        """Take samples.

        Parameters
        ----------
        contenders : sequence of Contender
            The baseline and the candidate, to be measured in turn. Where one copy of the model has
            to do, each is measured alone: first the candidate, then, in a second call, the
            baseline.
        """

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """Write the fields."""
        raise NotImplementedError


def drawn(order: Random, models: Sequence[T]) -> list[T]:
    """Return the models in an order that is drawn: when each runs, and after whom, favours none."""
    return order.sample(models, len(models))


def names(contenders: Sequence[Contender]) -> str:
    """Return what to call the contenders in a line of progress."""
    return " and ".join(CALLED[one.name] for one in contenders)
