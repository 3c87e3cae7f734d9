"""lm-eval's tasks, and a contender solving them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from transformers import PreTrainedConfig, set_seed

from trimtab.errors import ConfigError, first_line
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.harness.model import ContenderLM
from trimtab.models.facts import longest_text
from trimtab.settings import path_of

Samples = dict[str, list[dict[str, Any]]]  # of every task, what lm-eval logs of each document


def load_tasks(
    names: Sequence[str], folder: str | None, config: PreTrainedConfig
) -> dict[str, Any]:
    """Return lm-eval's tasks by name; those of a group or a tag each by its own.

    Parameters
    ----------
    folder : str, optional
        Where tasks are declared beside lm-eval's own.
    config : PreTrainedConfig
        Of the model that is to solve them.

    Raises
    ------
    ConfigError
        If a task is unknown, it or its data cannot be loaded, or its documents cannot be compared.
    """
    place = None if folder is None else path_of(folder)
    if place is not None and not place.is_dir():
        raise ConfigError("quality.task_folder", folder, "expected a folder of YAML files")
    with _quiet():
        manager = TaskManager(include_path=place, include_defaults=False)
        if not set(names) <= set(manager.all_tasks):  # thousands of files are read only if need be
            manager = TaskManager(include_path=place)
        tasks: dict[str, Any] = {}
        for name in names:
            if name not in manager.all_tasks:
                close = get_close_matches(name, manager.all_tasks)
                raise ConfigError(
                    "quality.tasks", name, "lm-eval has no such task"
                    + (f"; it has {', '.join(close)}" if close else "; lm-eval ls tasks lists them")
                )  # fmt: skip
            try:
                tasks |= manager.load([name])["tasks"]
            except Exception as error:  # datasets raises many types, and a task's code may any
                reason = first_line(error)
                raise ConfigError("quality.tasks", name, f"cannot be loaded: {reason}") from error
        for name, task in tasks.items():
            _require_fit(name, task, config)
    return tasks


def _require_fit(name: str, task: Any, config: PreTrainedConfig) -> None:
    """Refuse a task before anything is measured, where lm-eval would do so afterwards."""
    reasons = {
        "none of its figures is a mean over documents": metric_of(task) is None,
        "it runs code that a model wrote": getattr(task, "UNSAFE_CODE", False),
        "it has more than text": getattr(task, "MULTIMODAL", False),
        "it has fewer than 2 documents": len(task.eval_docs) < 2,
    }
    options = task.get_config("generation_kwargs")
    if task.OUTPUT_TYPE == "generate_until":
        new_tokens = normalize_gen_kwargs(options or {})["max_gen_toks"]
        reasons[f"it asks for {new_tokens} new tokens, more than the model has positions for"] = (
            new_tokens >= longest_text(config)
        )
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError("quality.tasks", name, reason)


def metric_of(task: Any) -> str | None:
    """Return a task's figure: normalised accuracy, or else the first that is a mean."""
    means = [name for name, kind in task.aggregation().items() if kind in (mean, np.mean)]
    return next((name for name in ("acc_norm", *means) if name in means), None)


def is_more_better(task: Any, metric: str) -> bool | None:
    """Return whether more of a task's figure is better; None where lm-eval does not know."""
    better: bool | None = task.higher_is_better().get(metric)
    return better


def solve(contender: Contender, tasks: dict[str, Any], limit: int | None, seed: int) -> Samples:
    """Have a contender solve tasks.

    Parameters
    ----------
    tasks : dict
        As `load_tasks` returns them. They may be solved again, by another contender.
    limit : int, optional
        The most documents of each; all where None.
    seed : int
        Of the examples in prompts, and of everything that is drawn.

    Returns
    -------
    dict
        Of every task, a row a document and filter.
    """
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    set_seed(seed)
    with _quiet():
        found = evaluate(
            ContenderLM(contender),
            {"tasks": tasks, "groups": {}},
            limit=limit,
            bootstrap_iters=0,  # intervals are made of the samples
        )
    samples: Samples = found["samples"]
    return samples


@contextmanager
def _quiet() -> Iterator[None]:
    """Have lm-eval say nothing but what went wrong within the block."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
