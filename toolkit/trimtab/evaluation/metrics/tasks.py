"""How well the models solve the tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, ClassVar

from scipy.stats import sem
from typing_extensions import TypedDict

from trimtab.errors import MisfitError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.intervals import Estimate, rate_difference
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics.metric import Both, Metric, Rows
from trimtab.evaluation.result import Result

NAME = "quality.tasks"


class Task(TypedDict):
    """A figure of a task, a mean over its documents; the difference is candidate minus baseline."""

    metric: str
    higher_is_better: bool | None
    documents: int
    baseline: float
    candidate: float
    difference: Estimate
    stderr: Both[float]
    generator: str


class Tasks(Metric):
    """Tasks of lm-eval, solved by both models."""

    reads_weights = True
    fields: ClassVar[dict[str, Any]] = {NAME: dict[str, Task], "samples.tasks": Rows}

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.scores: dict[str, dict[str, dict[int, float]]] = {"baseline": {}, "candidate": {}}
        self._metrics: dict[str, str] = {}
        self._better: dict[str, bool | None] = {}
        self._tasks: dict[str, Any] = {}
        quality = job.settings.quality
        if quality.tasks:
            if job.tokenizer.eos_token_id is None:
                raise MisfitError(
                    "quality.tasks: lm-eval needs the token that ends a text, and the tokenizer "
                    "names none: set its eos_token"
                )
            from trimtab.evaluation.harness.tasks import load_tasks

            self._tasks = load_tasks(quality.tasks, quality.task_folder, job.model_config)

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        if not self._tasks:
            return
        from trimtab.evaluation.harness.tasks import is_more_better, metric_of, solve

        settings = self.job.settings
        for one in contenders:
            found = solve(one, self._tasks, settings.quality.task_limit, settings.seed)
            for name, samples in found.items():
                metric, chosen = metric_of(self._tasks[name]), samples[0]["filter"]
                assert metric is not None  # load_tasks refuses such a task
                self._metrics[name] = metric if chosen == "none" else f"{metric},{chosen}"
                self._better[name] = is_more_better(self._tasks[name], metric)
                self.scores[one.name][name] = {
                    row["doc_id"]: float(row[metric]) for row in samples if row["filter"] == chosen
                }

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        rows = [
            {"task": name, "model": model, "document": document, "score": score}
            for model, tasks in self.scores.items()
            for name, scores in tasks.items()
            for document, score in scores.items()
        ]
        result.put("samples.tasks", rows)
        if self._tasks:
            result.put(NAME, {name: self._figures(name) for name in sorted(self._tasks)})
        else:
            result.missing(NAME, "quality.tasks is empty")

    def _figures(self, name: str) -> Task:
        documents = sorted(self.scores["baseline"][name])
        first, second = (
            [self.scores[model][name][document] for document in documents]
            for model in ("baseline", "candidate")
        )
        seed = self.job.settings.seed
        return {
            "metric": self._metrics[name],
            "higher_is_better": self._better[name],
            "documents": len(documents),
            "baseline": mean(first),
            "candidate": mean(second),
            "difference": rate_difference(first, second, [1] * len(documents), seed=seed),
            "stderr": {"baseline": float(sem(first)), "candidate": float(sem(second))},
            "generator": "transformers",
        }
