"""Many requests that arrive together: scenario *serving*, section `serving`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any, ClassVar

from trimtab.errors import TrimtabError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.display import Column
from trimtab.evaluation.intervals import Estimate, mean_ratio
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Metric, Rows
from trimtab.evaluation.reach import unseen
from trimtab.evaluation.requests import requests, spread
from trimtab.evaluation.result import Result
from trimtab.evaluation.server_rows import row_of, samples_of
from trimtab.evaluation.serving import Entrant, answer_in_turn, enough, entrants_of
from trimtab.evaluation.speed import Verdict, verdict
from trimtab.evaluation.trace import TRACE, trace_of
from trimtab.evaluation.workload import Prompt
from trimtab.progress import track

RATIOS = (  # of the times of the third over those of the second
    ("speedup", "candidate", "padded"),
    ("speedup_continuous", "candidate", "continuous"),
    ("control", "control", "padded"),
)


class Serving(Metric):
    """Rates, times to the first token and KV caches of servers under one budget.

    Attributes
    ----------
    entrants : dict of int to dict of str to Entrant
        By number of requests and name.
    """

    times = True
    columns = (
        Column(
            "serving speedup",
            "serving.speedup",
            ".3f",
            "requests per second over those of padded generate, many requests together",
        ),
    )
    fields: ClassVar[dict[str, Any]] = {
        "serving.kv_budget_bytes": int,
        "serving.speedup": Estimate,
        "serving.speedup_continuous": Estimate,
        "serving.control": Estimate,
        "serving.verdict": Verdict,
        "serving.servers": Rows,
        "samples.serving": Rows,
        "samples.serving_requests": Rows,
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._config = job.settings.serving
        self.entrants: dict[int, dict[str, Entrant]] = {}
        self._prompts: dict[int, list[Prompt]] = {}
        self._budget = self._config.budget
        self._order = Random(job.settings.seed)
        self._unmeasured = "" if self._config.requests else "serving.requests=[]"
        trace, seed = trace_of(self._config), job.settings.seed
        setting = f"{TRACE}={self._config.trace}" if trace else "serving.prompt_bytes, new_tokens"
        try:
            for count in sorted({*self._config.requests}):
                lengths = trace[:count] or spread(self._config, count, seed)
                prompts = requests(job.documents, job.tokenizer, lengths, setting)
                texts = [(one.text, one.continuation) for one in prompts]
                job.require_positions(texts, setting)
                self._prompts[count] = prompts
        except TrimtabError as error:
            self._prompts, self._unmeasured = {}, str(error)

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        try:
            if self._prompts and self._budget is None:
                self._budget = enough(contenders, self._prompts[max(self._prompts)])
            for count, prompts in self._prompts.items():
                entrants = [
                    entrant
                    for one in contenders
                    for entrant in entrants_of(one, prompts, self._budget or 0, self._config.peers)
                ]
                self.entrants.setdefault(count, {}).update({one.name: one for one in entrants})
                repeats = self._config.repeats
                rounds = answer_in_turn(entrants, repeats, self._order)
                for _ in track(rounds, f"Serving {count} requests together", repeats):
                    pass
        except TrimtabError as error:  # the model has no such cache, or the device no such memory
            self._prompts, self._unmeasured = {}, str(error)

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        if not self._prompts:
            result.missing("serving", self._unmeasured)
            for name in ("samples.serving", "samples.serving_requests"):
                result.put(name, [])
            return
        result.put("serving.kv_budget_bytes", self._budget)
        largest = self.entrants[max(self.entrants)]
        self._compare(result, largest)
        rows, samples = [], []
        for count, entrants in self.entrants.items():
            sizes = [len(one.continuation.encode()) for one in self._prompts[count]]
            for one in entrants.values():
                rows.append(row_of(count, one, sum(sizes)))
                samples += samples_of(count, one)
        result.put("serving.servers", rows)
        result.put("samples.serving", samples)
        result.put("samples.serving_requests", self._requests())
        self._warn(result, candidate, largest)

    def _compare(self, result: Result, largest: dict[str, Entrant]) -> None:
        found: dict[str, Estimate] = {}
        for name, *compared in RATIOS:
            if missing := [one for one in compared if one not in largest]:
                result.missing(f"serving.{name}", f"serving.peers has no {missing[0]}")
                continue
            ours, theirs = (largest[one] for one in compared)
            if reason := _unanswered(ours) or _unanswered(theirs):
                result.missing(f"serving.{name}", reason)
            else:
                taken = [[answer.seconds for answer in one.answers] for one in (theirs, ours)]
                found[name] = mean_ratio(*taken, paired=self.job.paired)
                result.put(f"serving.{name}", found[name])
        if {"speedup", "control"} <= {*found}:
            result.put("serving.verdict", verdict(found["speedup"], found["control"]))
        else:
            result.missing("serving.verdict", "serving.speedup or serving.control is missing")

    def _requests(self) -> Rows:
        rows: Rows = []
        for count, entrants in self.entrants.items():
            read = zip(self._prompts[count], entrants["padded"].requests, strict=True)
            rows += [
                {
                    "requests": count,
                    "document": prompt.document,
                    "prompt_bytes": len(prompt.text.encode()),
                    "prompt_tokens": len(request.prompt),
                    "bytes": len(prompt.continuation.encode()),
                    "new_tokens": request.new,
                }
                for prompt, request in read
            ]
        return rows

    def _warn(self, result: Result, candidate: Contender, largest: dict[str, Entrant]) -> None:
        answers = largest["padded"].answers
        shares = [1 - median(answer.first) / answer.seconds for answer in answers]
        texts = [(len(one.prompt), one.new) for one in largest["candidate"].requests]
        for text in unseen("serving", "serving", candidate, texts, median(shares or [1.0])):
            result.warn(text)


def _unanswered(one: Entrant) -> str | None:
    """Say why a server's times are not those of all requests."""
    if one.failure is not None:
        return f"{one.name}: {one.failure}"
    return f"{one.name} had no room for {one.refused} of the requests" if one.refused else None
