"""Figures that the report computes from those of a result: other units, and shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def derived(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `derived` of a result, see docs/reports.md; nothing of an error.

    What a figure is computed from may be null: the figure is null then.
    """
    if content["status"] != "ok":
        return {}
    return {
        "derived": {
            "bits_increase": _bits_increase(content),
            "perplexity_gap": _perplexity_gap(content),
            "time_saved": _interval(content, ("speed", "speedup"), lambda ratio: 1 - 1 / ratio),
            "kv_bytes_per_byte": _kv_bytes_per_byte(content),
            "serving_kv_bytes": (served := _serving_kv_bytes(content)),
            "one_text_bytes": _in_all(content, _one_text_kv_bytes(content)),
            "serving_bytes": _in_all(content, served),
        }
    }


def _bits_increase(content: Mapping[str, Any]) -> dict[str, float] | None:
    """Return how much more bits per byte the stack needs, as a share of the baseline's."""
    baseline = _at(content, "quality", "bits_per_byte", "baseline")
    if not baseline:
        return None
    place = "quality", "bits_per_byte", "difference"
    return _interval(content, place, lambda bits: bits / baseline)


def _perplexity_gap(content: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the perplexity that the stack adds to the baseline's."""
    baseline = _at(content, "quality", "perplexity", "baseline")
    if not baseline:
        return None
    place = "quality", "perplexity", "ratio"
    return _interval(content, place, lambda ratio: (ratio - 1) * baseline)


def _kv_bytes_per_byte(content: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the memory held for a text over its bytes; the baseline's is a dynamic cache's."""
    live = _at(content, "kv", "live_bytes")
    per_byte = _at(content, "kv", "live_bytes_per_byte", "candidate")
    if not live or not per_byte:
        return None
    text = live / per_byte
    held = _one_text_kv_bytes(content)
    return held and {name: amount / text for name, amount in held.items()}


def _one_text_kv_bytes(content: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the memory held for a text; the baseline's is a dynamic cache's."""
    baseline, candidate = (
        _at(content, "kv", name) for name in ("dynamic_bytes", "committed_bytes")
    )
    if not baseline or candidate is None:
        return None
    return {"baseline": baseline, "candidate": candidate}


def _serving_kv_bytes(content: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the memory held for the most requests, for the baseline its padded generate's."""
    servers = _at(content, "serving", "servers") or ()
    most = max((row["requests"] for row in servers), default=None)
    held = {row["server"]: row.get("kv_committed_bytes") for row in servers
            if row["requests"] == most}  # fmt: skip
    baseline, candidate = held.get("padded"), held.get("candidate")
    if not baseline or candidate is None:
        return None
    return {"baseline": baseline, "candidate": candidate}


def _in_all(content: Mapping[str, Any], kv: Mapping[str, float] | None) -> dict[str, float] | None:
    """Return what weights, the engine's copy of the head and KV caches take together.

    Null where speed was not measured, which tells whether the engine has a copy.
    """
    weights = _at(content, "memory", "parameter_bytes")
    if not weights or not kv or content.get("speed") is None:
        return None
    copies = {"baseline": 0, "candidate": _at(content, "engine", "head_copy_bytes") or 0}
    return {name: weights[name] + copies[name] + kv[name] for name in copies}


def _interval(
    content: Mapping[str, Any], place: tuple[str, ...], change: Callable[[float], float]
) -> dict[str, float] | None:
    found = _at(content, *place)
    return found and {name: change(found[name]) for name in ("estimate", "low", "high")}


def _at(content: Mapping[str, Any], *place: str) -> Any:
    value: Any = content
    for part in place:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
