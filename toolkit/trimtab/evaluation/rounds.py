"""Rounds of timing, in drawn order, and as many as the interval needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import chain
from operator import attrgetter
from random import Random

from typing_extensions import TypedDict

from trimtab.config import SpeedConfig
from trimtab.evaluation.bandwidth import Reader
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.intervals import Estimate, half_width, typical_ratio
from trimtab.evaluation.load import LoadWatch
from trimtab.evaluation.memory import twin
from trimtab.evaluation.metrics.metric import drawn, names
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Prompt
from trimtab.progress import track

READ_PARTS = 8


class StoppedBy(StrEnum):
    """Why no further round was timed."""

    precision = "precision"
    time_limit = "time"
    count_limit = "count"


class Timed(TypedDict):
    """The rounds that were timed; see docs/results.md."""

    done: int
    stopped_by: StoppedBy
    half_width: float


class Rounds:
    """Times contenders in rounds: every prompt once for each of them.

    The baseline is timed twice in every round, the second time as the control, each time by Python
    objects made for it, so that none of the models has run before. Their order is drawn for every
    prompt: when each runs, and after whom, favours none of them. Before each, memory is read, which
    takes what the last one left in the caches out of the way.

    Parameters
    ----------
    prompts : sequence of Prompt
    settings : SpeedConfig
    seed : int
        Of the order.

    Attributes
    ----------
    timings : dict of str to list of Timing
        Of ``baseline``, ``candidate`` and ``control``: rounds in order, prompts within.
    read : list of float
        Bytes per second at which memory was read before each of them.
    load : LoadWatch
    stopped_by : StoppedBy
    """

    def __init__(self, prompts: Sequence[Prompt], settings: SpeedConfig, seed: int) -> None:
        self._prompts, self._settings, self._order = prompts, settings, Random(seed)
        self.timings: dict[str, list[Timing]] = {"baseline": [], "candidate": [], "control": []}
        self.read: list[float] = []
        self.load = LoadWatch()
        self.stopped_by = StoppedBy.count_limit

    @property
    def done(self) -> int:
        """How many rounds were timed."""
        return len(self.timings["baseline"]) // len(self._prompts)

    def speedup(self, seconds: Callable[[Timing], float], of: str = "candidate") -> Estimate:
        """Return the baseline's time over another contender's, in pairs of the same round.

        All produce the same bytes, so a ratio of times is one of times per byte.
        """
        return typical_ratio(*([*map(seconds, self.timings[name])] for name in ("baseline", of)))

    def run(self, contenders: Sequence[Contender]) -> None:
        """Time the contenders: both in turn, or one, `speed.repeats` times."""
        settings, began = self._settings, time.perf_counter()
        models, title = [], f"Timing: {names(contenders)}"
        for one in contenders:
            if one.name == "baseline":  # by objects as new as the candidate's are, and once more
                models += [
                    Contender(name, twin(one.model), one.base_tokenizer)
                    for name in ("baseline", "control")
                ]
            else:
                models.append(one)
        reader = Reader(contenders[0].model.device, READ_PARTS)
        with self.load.watching():
            for one in models:
                for prompt in [*self._prompts] * settings.warmup:
                    one.generator.teacher_forced(prompt)
            for _ in track(range(settings.repeats), title, settings.repeats):
                self._round(models, reader)
            more = self._more(began) if len(contenders) > 1 else iter(())
            for number in more:
                limits = f"±{settings.precision:.0%}, or {settings.seconds:.0f} s in all"
                title = f"More rounds (until {limits})"
                for _ in track(chain([number], more), title, settings.more_repeats):
                    self._round(models, reader)

    def _round(self, models: Sequence[Contender], reader: Reader) -> None:
        for prompt in self._prompts:
            for one in drawn(self._order, models):
                self.read.append(reader())
                self.timings[one.name].append(one.generator.teacher_forced(prompt))

    def _more(self, began: float) -> Iterator[int]:
        """Yield the numbers of further rounds until there is no need, or no time, for one."""
        for number in range(self._settings.more_repeats + 1):
            if half_width(self.speedup(attrgetter("total"))) <= self._settings.precision:
                self.stopped_by = StoppedBy.precision
            elif number == self._settings.more_repeats:
                self.stopped_by = StoppedBy.count_limit
            elif time.perf_counter() - began >= self._settings.seconds:
                self.stopped_by = StoppedBy.time_limit
            else:
                yield number
                continue
            return
