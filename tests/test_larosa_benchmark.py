"""The tables of `benchmarks/larosa.py`, from likelihoods that are known."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from tests.conftest import ROOT

ONE = {"estimate": 1.0, "low": 1.0, "high": 1.0}


def row(method: str, nats: list[float], asked: float = 0.25, axis: str = "bytes") -> dict[str, Any]:
    shared = {"text": "python-docs", "bytes_fraction": 0.7512, "perplexity_ratio": ONE}
    return {"method": method, "axis": axis, "asked": asked, "nats": nats, **shared}


def test_methods_are_set_against_ours_window_by_window(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows = [
        row("ours", [100.0, 200.0, 400.0]),
        row("Top-K", [110.0, 220.0, 440.0]),  # a tenth more of every window
        row("uneven", [130.0, 200.0, 370.0]),  # as many bits in all
        row("unmatched", [1.0, 2.0, 3.0], asked=0.45),
        row("ours", [100.0, 200.0, 400.0], axis="nominal"),
    ]
    (tmp_path / "larosa.json").write_text(json.dumps({"rows": rows}), "utf-8")
    report = importlib.import_module("larosa_report").write_report(tmp_path)
    dense, ours, nominal = report.split("\n\npython-docs, ")
    assert "| Top-K | 1.000 [1.000, 1.000] at 0.751 | - |" in dense
    assert "| unmatched | - | 1.000 [1.000, 1.000] at 0.751 |" in dense
    assert ours.startswith("equal bytes read: bits of the text over `ours`, window by window")
    assert "| Top-K | 1.100 [1.100, 1.100] |" in ours
    low, high = ours.split("| uneven | 1.000 [")[1].split("]")[0].split(", ")
    assert 0.925 <= float(low) < 1 < float(high) <= 1.3  # the windows' own ratios
    assert "unmatched" not in ours
    assert "over `ours`" not in nominal
