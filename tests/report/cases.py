"""Results as jobs leave them, small enough to be told by hand."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path
from typing import Any

from trimtab.evaluation.schema import SCHEMA

NOISE = (-0.02, 0.01, 0.02, -0.01)  # of the logarithms of the ratios; their sum is 0
ERROR = {"status": "error", "label": "broken", "type": "X", "message": "it broke\nhere | there"}


def interval(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high}


def about(value: float) -> dict[str, float]:
    """Return a measurement with an error of a tenth."""
    return interval(value, 0.9 * value, 1.1 * value)


def result(
    label: str = "larosa",
    speedup: tuple[float, float, float] = (1.0, 0.9, 1.1),
    *,
    methods: tuple[str, ...] | None = None,
    lost: float = 0.01,
    same: bool = False,
    committed: int = 2000,
    overrides: list[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a result.json of a stack.

    Parameters
    ----------
    methods : tuple of str, optional
        The stack; by default the label's first word, nothing for `baseline`.
    lost : float
        Bits per byte more than the baseline's 1.25; the interval is from half to twice of it.
    same : bool
        Whether every greedy text is the baseline's.
    committed : int
        Bytes of the KV cache, of which transformers' take 2000.
    """
    if methods is None:
        methods = () if label == "baseline" else (label.split()[0],)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "ok",
        "label": label,
        "methods": list(methods),
        "kernel": "the kernel that ran",
        "model": {"name": "tiny", "dtype": "float32", "fingerprint": "f"},
        "corpus": {"name": "words", "digest": "d", "documents": 18},
        "environment": {
            "cpu": "A CPU", "threads": 2, "gpu": None, "commit": "c" * 40, "seed": seed,
            "packages": {"torch": "2", "transformers": "5"},
        },
        "quality": {
            "bits_per_byte": {
                "baseline": 1.25,
                "candidate": 1.25 + lost,
                "difference": interval(lost, lost / 2, lost * 2),
            },
            "windows": 2,
            "scored_bytes": 200,
            "greedy_agreement": interval(*((1.0, 1.0, 1.0) if same else (0.5, 0.4, 0.6))),
            "exact_match": interval(*((1.0, 0.4, 1.0) if same else (0.0, 0.0, 0.6))),
        },
        "tokens": {
            "baseline": 1000,
            "candidate": 877,
            "saving": 0.123,
            "steps": {"baseline": 200, "candidate": 131, "saving": 0.345},
        },
        "kv": {
            "live_bytes": 1000,
            "committed_bytes": committed,
            "dynamic_bytes": 2000,
            "live_bytes_per_byte": {"baseline": 10.0, "candidate": 10.0},
        },
        "sparsity": None,
        "memory": {
            "parameter_bytes": {"baseline": 500, "candidate": 500},
            "huge_page_bytes": 900,
            "peak_device_bytes": None,
        },
        "speed": {
            "paired": True,
            "rounds": {"done": 2},
            "speedup": interval(*speedup),
            "ms_per_byte": {"baseline": about(4.0), "candidate": about(4.0 / speedup[0])},
            "decode_tokens_per_s": {"baseline": about(10.0), "candidate": about(10 * speedup[0])},
        },
        "energy": None,
        "samples": {
            "timings": [
                {"model": model, "prompt": number % 2, "total": total, "new_tokens": 24,
                 "prompt_tokens": 60 + number % 2}
                for number, noise in enumerate(NOISE)
                for model, total in (
                    ("baseline", 1.0),
                    ("candidate", exp(noise) / speedup[0]),
                )
            ],
            "windows": [
                {"model": model, "document": f"{number}", "bytes": 100, "bits": bits}
                for number, part in enumerate((0.5, 1.5))
                for model, bits in (("baseline", 125.0), ("candidate", 125 + 100 * lost * part))
            ],
        },
        "reasons": {
            "sparsity": "none", "energy": "no meter", "memory.peak_device_bytes": "no GPU",
        },
    }  # fmt: skip
    if overrides is not None:
        content["overrides"] = overrides
    return content


def server(requests: int, name: str, tokens: float, held: float) -> dict[str, Any]:
    return {
        "requests": requests, "server": name, "rounds": 3, "requests_per_s": about(tokens / 20),
        "tokens_per_s": about(tokens), "texts_per_s": about(tokens / 20),
        "ttft_p50_ms": about(50.0), "ttft_p99_ms": about(90.0),
        "kv_committed_bytes": held, "kv_wasted_bytes": held / 4, "refused": 0,
    }  # fmt: skip


def serving(content: dict[str, Any], speedup: tuple[float, float, float]) -> dict[str, Any]:
    """Return a result with the scenario *serving*, in which the stack holds half the memory."""
    rows = [
        server(count, name, tokens * count, held * count)
        for count in (8, 16)
        for name, tokens, held in (
            ("candidate", 10 * speedup[0], 1e6), ("padded", 10.0, 2e6), ("continuous", 12.0, 1.5e6)
        )
    ]  # fmt: skip
    part = {"kv_budget_bytes": 64e6, "speedup": interval(*speedup), "servers": rows}
    return content | {"serving": part}


def sparse(content: dict[str, Any], layers: int = 3) -> dict[str, Any]:
    """Return a result with shares of dropped activations, a transform at every attention input."""
    rows = [
        {"layer": layer, "site": site, "basis": "transform" if site == "h1" else "plain",
         "achieved": 0.1 * layer}
        for site in ("h1", "h2", "h3", "h4")
        for layer in range(layers)
    ]  # fmt: skip
    part = {"achieved": 0.1, "bytes_fraction": 0.9, "bytes_read_fraction": 0.9, "layers": rows}
    return content | {"sparsity": part}


def compressing(label: str, low: float, high: float) -> dict[str, Any]:
    content = result(label)
    middle = (low + high) / 2
    content["quality"]["compression"] = {
        "bits_per_byte": {
            "baseline": 0.877, "candidate": 0.9, "prompt_cut": 0.9 - middle,
            "difference": interval(middle, low, high),
        },
        "tokens": {"baseline": 1000, "candidate": 800, "prompt_cut": 800},
        "beats_control": high < 0,
    }  # fmt: skip
    return content


def budgeted(content: dict[str, Any]) -> dict[str, Any]:
    """Return a result with the operating points of a vocabulary under a quality budget."""
    points = [
        {"ngrams": count, "saving": saving, "bits_per_byte": 1 + rise, "increase": rise}
        for count, saving, rise in ((8, 0.02, 0.01), (500, 0.2, 0.3))
    ]
    part = {"merged": 8, "quality_budget": 0.01, "operating_points": points}
    return content | {"vocabulary": part}


def written(folder: Path, jobs: list[dict[str, Any]]) -> Path:
    """Write results and errors as the jobs of a sweep, and return its folder."""
    for index, job in enumerate(jobs):
        (folder / str(index)).mkdir(parents=True)
        name = "result.json" if job["status"] == "ok" else "error.json"
        (folder / str(index) / name).write_text(json.dumps(job))
    return folder
