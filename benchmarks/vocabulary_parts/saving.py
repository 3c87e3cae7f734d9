"""What n-grams save: tokens, forward steps, and what they cost to encode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product

from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.adaptivocab.settings import NGramSelection
from trimtab.corpus import Split, encode
from trimtab.evaluation.intervals import ratio
from vocabulary_parts.bench import MAX_NGRAM, Bench, Record

SIZES = (500, 2000, 5000)
LENGTHS = (2, 3, 8)  # most of an n-gram, beside `MAX_NGRAM`


def mining(bench: Bench) -> Iterator[Record]:
    tokens = sum(len(text.tokens) for text in bench.tokenized)
    cases = [(kind, size, MAX_NGRAM) for kind, size in product(NGramSelection, SIZES)]
    cases += [(NGramSelection.merging, bench.size, length) for length in LENGTHS]
    for kind, size, length in cases:
        started = time.perf_counter()
        ngrams = bench.mine(kind, size, length)
        yield {
            "selection": kind.value, "max_ngram": length, "size": len(ngrams),
            "mined_tokens": tokens, "seconds": time.perf_counter() - started,
            "saving": bench.saving(ngrams, bench.corpus),
            "other_saving": bench.saving(ngrams, bench.other),
        }  # fmt: skip
    for size in SIZES:
        ngrams = bench.mine_freely(size)
        yield {
            "selection": "merging, no tokenizer", "max_ngram": MAX_NGRAM, "size": len(ngrams),
            "mined_tokens": tokens,
            "saving": bench.saving(ngrams, bench.corpus, freely=True),
            "other_saving": bench.saving(ngrams, bench.other, freely=True),
        }  # fmt: skip


def encoding(bench: Bench) -> Iterator[Record]:
    """Time encoding document by document, the two tokenizers in turn, each text once for each."""
    for size in (2000, 10000):
        ngrams = bench.mine(NGramSelection.merging, size)
        tokenizers = {"base": bench.tokenizer, "extended": bench.extender.build(ngrams)}
        seconds: dict[str, list[float]] = {name: [] for name in tokenizers}
        for number, document in enumerate(bench.other.documents(Split.calibration)):
            names = list(tokenizers) if number % 2 else list(tokenizers)[::-1]
            for name in names:
                started = time.perf_counter()
                encode(tokenizers[name], document.text)
                seconds[name].append(time.perf_counter() - started)
        yield {
            "size": len(ngrams),
            "time_over_base": ratio(seconds["extended"], seconds["base"], paired=True, seed=0),
            "seconds": seconds,
        }


def drafting(bench: Bench) -> Iterator[Record]:
    drafter = ContextDrafter.count([text.tokens for text in bench.tokenized])
    for corpus in (bench.corpus, bench.other):
        tokens = [encode(bench.tokenizer, d.text) for d in corpus.documents(Split.test)]
        lengths = [float(len(text)) for text in tokens]
        steps = [float(drafter.steps(text)) for text in tokens]
        yield {
            "text": corpus.name, "tokens": sum(lengths), "steps": sum(steps),
            "tokens_per_step": ratio(lengths, steps, paired=True, seed=0),
        }  # fmt: skip
