"""What a server did, as rows of result.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.evaluation.cache_memory import PAGEMAP
from trimtab.evaluation.intervals import geometric_mean
from trimtab.evaluation.serving import OWN_TEXT, Entrant

RATES = ("requests_per_s", "texts_per_s", "tokens_per_s", "bytes_per_s")
MEASURED = (
    *RATES, "ttft_p50_ms", "ttft_p99_ms", "at_once", "preempted", "refused", "kv_committed_bytes",
    "kv_wasted_bytes", "kv_measured_bytes",
)  # fmt: skip


def row_of(count: int, one: Entrant, size: int) -> dict[str, Any]:
    """Return what a server did with so many requests, whose texts have `size` bytes in all."""
    row: dict[str, Any] = {"requests": count, "server": one.name, "rounds": len(one.answers)}
    row |= dict.fromkeys(MEASURED)
    if one.failure is not None:
        return row | {"reason": one.failure}
    seconds = np.array([answer.seconds for answer in one.answers])
    first = 1e3 * np.array([answer.first for answer in one.answers])
    answered = count - one.refused
    tokens = sum(map(len, one.answers[0].tokens))
    memory = [answer.memory for answer in one.answers]
    committed, live = max(held.committed for held in memory), max(held.live for held in memory)
    sums = dict(zip(RATES, (answered, answered, tokens, size), strict=True))
    row |= {name: geometric_mean(value / seconds) for name, value in sums.items()}
    row |= {
        "ttft_p50_ms": geometric_mean(np.percentile(first, 50, axis=1)),
        "ttft_p99_ms": geometric_mean(np.percentile(first, 99, axis=1)),
        "at_once": one.answers[0].at_once,
        "preempted": one.answers[0].preempted,
        "refused": one.refused,
        "kv_committed_bytes": committed,
        "kv_wasted_bytes": committed - live,
        "kv_measured_bytes": memory[-1].measured,
    }
    reasons = []
    if one.own_text or one.refused:
        row["bytes_per_s"] = None
        reasons.append(f"bytes_per_s: {OWN_TEXT if one.own_text else 'requests were refused'}")
    if row["kv_measured_bytes"] is None:
        reasons.append(f"kv_measured_bytes: no {PAGEMAP}, or a cache on a GPU")
    return row | {"reason": "; ".join(reasons) or None}


def samples_of(count: int, one: Entrant) -> list[dict[str, Any]]:
    """Return one row a round."""
    return [
        {
            "requests": count,
            "server": one.name,
            "round": number,
            "seconds": answer.seconds,
            "first": answer.first,
            "preempted": answer.preempted,
        }
        for number, answer in enumerate(one.answers)
    ]
