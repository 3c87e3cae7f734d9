"""What the benchmarks refuse before they measure anything, and how they say so."""

from __future__ import annotations

import runpy
import shlex
import sys

import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
SIZES = "expected sizes of at least 1, as in"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("kv.py --budgets 1 0", "--budgets: 0: expected a number above 0"),
        ("kv.py --budgets=-1", "--budgets: -1: expected a number above 0"),
        ("kv.py --budgets inf", "--budgets: inf: expected a number above 0"),
        ("kv.py --budgets 1e-6", "--budgets 1e-06: expected at least a page, 0.00195"),
        ("kv.py --layers 0", "--layers: 0: expected a whole number of at least 1"),
        ("kv.py --heads 6 --kv-heads 4", "--heads 6: expected a multiple of 4"),
        ("larosa.py --methods our", "--methods: invalid choice: 'our'"),
        ("larosa.py --budgets --nominal", "--budgets [] --nominal [] --methods ['magnitude Top-K'"),
        (
            "larosa.py --budgets --methods 'TEAL thresholds'",
            "nothing to measure; expected a budget",
        ),
        ("vocabulary.py --test-tokens 1023", "--test-tokens 1023: expected at least 1024"),
        ("control.py --seconds 0", "--seconds: 0: expected a number above 0"),
        ("decode.py --dtypes float32,int8", "--dtypes: float32,int8: expected some of float32,bfl"),
        ("decode.py --repeats 1", "--repeats 1: expected at least 2, for an interval"),
        ("scaling.py --parts rows,batch", "--parts: rows,batch: expected some of context,rows,thr"),
        ("scaling.py --models llama-1b", "--models: llama-1b: expected a model and float32 or bf"),
        ("gpu.py --samples 1", "--samples 1: expected at least 2, for an interval"),
        ("gpu.py --limit 0", "--limit: 0: expected a number above 0"),
        ("gpu.py --model tiny-gpt2", "--model: invalid choice: 'tiny-gpt2'"),
        ("sparse_linear.py --shapes 64", f"--shapes: 64: {SIZES} 4096x11008"),
        ("sparse_linear.py --shapes 8x8 64x0", f"--shapes: 64x0: {SIZES} 4096x11008"),
        ("decode_attention.py --shapes 9x64", f"--shapes: 9x64: {SIZES} 32x8x128"),
        ("decode_attention.py --shapes 9x3x", f"--shapes: 9x3x: {SIZES} 32x8x128"),
        ("decode_attention.py --shapes 9x2x64", "--shapes 9x2x64: expected heads that are a"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_can(monkeypatch, capsys, command, reason):
    script, *arguments = shlex.split(command)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
