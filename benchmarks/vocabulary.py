"""AdaptiVocab's parts, one by one: what n-grams save, what their rows cost, what is really free.

    python benchmarks/vocabulary.py [--model smollm2-135m] [--text docs|source] [--size 2000]
                                    [--parts rows …]

Everything is measured on held-out documents of the text that was calibrated on, and, where an
n-gram could do harm, on the other text too: Python's documentation and its standard library's
source code. Parts: `mining` (tokens saved by size and selection, seconds), `encoding` (the
extended tokenizer's time over the base's), `drafting` (tokens a step, and in a time), `rows`
(bits per byte of whole texts with all n-grams merged, by kind of rows; and what of it the input
rows alone lose) and `operating_points` (the least costly n-grams first).
Writes vocabulary.json with every passage's likelihoods, and prints tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from arguments import positive
from kv_parts.generating import EMBEDDED
from vocabulary_parts.bench import WINDOW, Bench, Record
from vocabulary_parts.loss import operating_points, rows
from vocabulary_parts.saving import drafting, encoding, mining

from trimtab.adaptivocab.settings import Rows
from trimtab.environment import describe_environment, prepare
from trimtab.files import write_json
from trimtab.progress import say

PARTS = {part.__name__: part for part in (mining, encoding, drafting, rows, operating_points)}


def summary(record: Record) -> str:
    """Return one line of what a record says."""
    parts = []
    for name, value in record.items():
        if isinstance(value, float):
            parts.append(f"{name} {value:.4g}")
        elif isinstance(value, dict) and "estimate" in value:
            interval = f"[{value['low']:.4f}, {value['high']:.4f}]"
            parts.append(f"{name} {value['estimate']:.4f} {interval}")
        elif isinstance(value, str | int):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED, help="or gemma3-270m, a name, a folder")
    parser.add_argument("--text", choices=("docs", "source"), default="docs")
    parser.add_argument("--size", type=positive, default=2000)
    parser.add_argument("--fit-tokens", type=positive, default=32768)
    parser.add_argument("--test-tokens", type=positive, default=8192)
    parser.add_argument("--rows", nargs="*", type=Rows, default=list(Rows))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("vocabulary-benchmark"))
    options = parser.parse_args()
    options.device, options.seed = "auto", 0
    if options.test_tokens < 2 * WINDOW:
        parser.error(
            f"--test-tokens {options.test_tokens}: expected at least {2 * WINDOW}, two passages "
            f"of {WINDOW}, for an interval"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(0, None)
    bench = Bench(options)
    found: dict[str, Any] = {
        "environment": describe_environment(0),
        "model": options.model,
        "text": bench.corpus.name,
    }
    for part in options.parts:
        found[part] = []
        for record in PARTS[part](bench):
            found[part].append(record)
            say(f"{part}: {summary(record)}")
            write_json(options.out / "vocabulary.json", found)


if __name__ == "__main__":
    main()
