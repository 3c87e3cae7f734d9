"""The energy that generation takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from statistics import mean
from typing import Any, ClassVar

from typing_extensions import TypedDict

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Column
from trimtab.evaluation.energy_counters import EnergyCounter, NoCounterError, counter_for
from trimtab.evaluation.intervals import Estimate, ratio
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.metrics.metric import Both, Metric, Rows, drawn, names
from trimtab.evaluation.result import Result
from trimtab.evaluation.workload import Prompt
from trimtab.progress import track

LEAST_SECONDS = 1.0  # of a block: counters move on every few milliseconds, some every 100


class Section(TypedDict):
    """What `energy` holds; the ratio is candidate over baseline."""

    joules_per_1000_bytes: Both[float]
    ratio: Estimate
    source: str


class Energy(Metric):
    """Joules per 1 000 bytes of text, over blocks of teacher-forced generations."""

    generates = True
    times = True
    needs = (Greedy,)
    columns = (Column("J per 1000 bytes", "energy.joules_per_1000_bytes.candidate", ".2f"),)
    fields: ClassVar[dict[str, Any]] = {"energy": Section, "samples.energy": Rows}

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._prompts = job.metric(Greedy).prompts
        self._blocks = job.settings.energy.blocks
        self._order = Random(job.settings.seed)
        self.samples: dict[str, Rows] = {"baseline": [], "candidate": []}
        self._source = ""
        self._reason = "energy.blocks=0"

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        if self._blocks == 0:
            return
        devices = {part.device for one in contenders for part in one.model.parameters()}
        try:
            counter = counter_for(devices)
        except NoCounterError as error:
            self._reason = str(error)
            return
        self._source = counter.source
        for one in contenders:  # what is made at first use is no part of a block
            one.generator.teacher_forced(self._prompts[0])
        for number in track(range(self._blocks), f"Energy: {names(contenders)}", self._blocks):
            prompt = number % len(self._prompts)
            for one in drawn(self._order, contenders):
                row = _block(one, self._prompts[prompt], counter)
                self.samples[one.name].append({"model": one.name, "prompt": prompt, **row})

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        rows = [*self.samples["baseline"], *self.samples["candidate"]]
        result.put("samples.energy", rows)
        if not rows:
            result.missing("energy", self._reason)
        elif any(row["joules"] == 0 for row in rows):
            result.missing("energy", f"{self._source} stood still for a whole block")
        else:
            first, second = (
                [1000 * row["joules"] / row["bytes"] for row in self.samples[name]]
                for name in ("baseline", "candidate")
            )
            settings = self.job.settings
            change = ratio(second, first, paired=self.job.paired, seed=settings.seed)
            both = {"baseline": mean(first), "candidate": mean(second)}
            section = {"joules_per_1000_bytes": both, "ratio": change, "source": self._source}
            result.put("energy", section)


def _block(contender: Contender, prompt: Prompt, counter: EnergyCounter) -> dict[str, Any]:
    """Have a model generate the same text for long enough; return what was counted.

    The counter is read after every text, so that it begins again at most once in between.
    """
    counter.spent()
    joules, texts, seconds, started = 0.0, 0, 0.0, time.perf_counter()
    while texts == 0 or seconds < LEAST_SECONDS:
        contender.generator.teacher_forced(prompt)
        joules += counter.spent()
        texts += 1
        seconds = time.perf_counter() - started
    size = texts * len(prompt.continuation.encode())
    return {"texts": texts, "bytes": size, "seconds": seconds, "joules": joules}
