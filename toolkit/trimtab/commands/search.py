"""What a search over configurations looks for, and what it has found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.config import METRICS, EvaluateConfig
from trimtab.errors import ConfigError, TrimtabError
from trimtab.progress import answer, say
from trimtab.registry import method_names
from trimtab.retyped import retyped
from trimtab.sweep_state import read_whole

BUDGET = "search.max_bpb_increase"


def require_objective(settings: EvaluateConfig) -> None:
    """Refuse a search whose jobs would not measure what it looks for.

    Raises
    ------
    TrimtabError
        If there is a budget and the weights are random, or a metric that is needed is left out.
    """
    budget = settings.search.max_bpb_increase
    if budget is not None and settings.model.random_weights:
        reason = "has no quality to hold to a budget, as its weights are random: write null"
        raise ConfigError(BUDGET, budget, f"the model {reason}, or choose another model")
    needed = ["latency"] if budget is None else ["latency", "likelihood"]
    for name in needed:
        if METRICS[name] not in settings.metrics.values():
            raise TrimtabError(f"metrics has no {METRICS[name]}: a search needs it")


def objective(result: dict[str, Any], budget: float | None) -> float:
    """Return what a search makes as large as it can.

    Parameters
    ----------
    result : dict
        Content of result.json.
    budget : float or None
        Most that bits per byte may rise, relative to the unmodified model; None for any.

    Returns
    -------
    objective : float
        The speedup; over the budget, by how much, below zero: less than that of anything within.

    Raises
    ------
    ConfigError
        If there is a budget and quality was not measured.
    """
    speedup = float(result["speed"]["speedup"]["estimate"])
    if budget is None:
        return speedup
    increase = _increase(result)
    if increase is None:
        reason = "quality was not measured, so that nothing can be held to a budget: write null"
        raise ConfigError(BUDGET, budget, reason)
    return speedup if increase <= budget else budget - increase


def _increase(result: dict[str, Any]) -> float | None:
    """Return by how much bits per byte rise at most, relative to the unmodified model."""
    bits = (result["quality"] or {}).get("bits_per_byte")
    return float(bits["difference"]["high"] / bits["baseline"]) if bits else None


def tell_winner(folder: Path, budget: float | None) -> None:
    """Print the command that measures the fastest configuration of a search again."""
    found = map(read_whole, folder.glob("*/result.json"))
    results = [result for result in found if result is not None]
    within = "" if budget is None else f" within {BUDGET}={budget}"
    best = max(results, key=lambda one: objective(one, budget), default=None)
    if best is None or objective(best, budget) < 0:
        say(f"None of {len(results)} configurations is{within or ' measured'}")
        return
    speedup = best["speed"]["speedup"]
    say(
        f"The fastest of {len(results)} configurations{within} is {speedup['estimate']:.3f} "
        f"[{speedup['low']:.3f}, {speedup['high']:.3f}] times as fast as the unmodified model:"
    )
    answer(retyped(best, *_own(best)))


def _own(result: dict[str, Any]) -> list[str]:
    """Return the overrides that a stack reads by itself; an experiment of yours may set others."""
    foreign = [f"methods.{one}." for one in method_names() if one not in result["methods"]]
    left_out = (*foreign, "search.")
    given = [str(one).lstrip("+") for one in result["overrides"]]
    return [one for one in given if one != "experiment=search" and not one.startswith(left_out)]
