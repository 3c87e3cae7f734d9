"""What n-grams lose: bits per byte by kind of rows, and by how many of them are merged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.quality_budget import costs, operating_counts, order_by_cost
from trimtab.adaptivocab.rows.extended import extended
from trimtab.adaptivocab.rows.fit import ON_TEXT
from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.scoring import ScoredPassages, predict
from trimtab.adaptivocab.settings import NGramSelection, Rows
from trimtab.corpus import Split
from trimtab.evaluation.intervals import rate_difference
from vocabulary_parts.bench import Bench, Record


def rows(bench: Bench) -> Iterator[Record]:
    ngrams = bench.mine(NGramSelection.merging, bench.size)
    fitted = set(ON_TEXT) & set(bench.kinds)
    fit = bench.base_scores(bench.corpus, Split.calibration, bench.fit_tokens) if fitted else []
    tests = {
        corpus.name: bench.base_scores(corpus, Split.test, bench.test_tokens)
        for corpus in (bench.corpus, bench.other)
    }
    for kind in bench.kinds:
        started = time.perf_counter()
        extension = bench.fitter(kind).extend(ngrams, fit)
        seconds = time.perf_counter() - started
        for text, test in tests.items():
            scored, read_alone = (bench.score(extension, test, output=on) for on in (True, False))
            with extended(bench.loaded.model, extension.rows, output=True):
                mass = emitted(bench, scored.passages, ngrams)
            yield {
                "rows": kind.value, "text": text, "fit_seconds": seconds,
                **likelihood(scored),
                "input_difference": likelihood(read_alone)["difference"], **mass,
            }  # fmt: skip


def emitted(bench: Bench, passages: Sequence[Passage], ngrams: NGrams) -> Record:
    """Return how often n-grams are predicted, and how often they are there."""
    predicted, there, tokens = 0.0, 0, 0
    for passage in passages[:4]:
        logits, _ = predict(bench.loaded.model, passage.merged, bench.start)
        predicted += float(logits.softmax(-1)[:, ngrams.base_size :].sum())
        there += int((passage.merged >= ngrams.base_size).sum())
        tokens += len(passage.merged)
    return {"emitted": predicted / tokens, "emitted_in_text": there / tokens}


def likelihood(scored: ScoredPassages) -> Record:
    """Return bits per byte of both models, and the paired difference."""
    bits = {
        name: [float(part.sum()) / math.log(2) for part in parts]
        for name, parts in (("base", scored.base_nats), ("merged", scored.nats))
    }
    sizes = [float(passage.size) for passage in scored.passages]
    return {
        "saving": scored.saving,
        "bits_per_byte": scored.bits_per_byte,
        "base_bits_per_byte": scored.base_bits_per_byte,
        "difference": rate_difference(bits["base"], bits["merged"], sizes, seed=0),
        "bits": bits,
        "bytes": sizes,
    }


def operating_points(bench: Bench) -> Iterator[Record]:
    """Order n-grams by their cost on validation text, and merge more and more of them."""
    ngrams = bench.mine(NGramSelection.merging, bench.size)
    fitter = bench.fitter(Rows.fitted)
    fit = bench.base_scores(bench.corpus, Split.calibration, bench.fit_tokens)
    splits = {
        split: bench.base_scores(bench.corpus, split, bench.test_tokens)
        for split in (Split.validation, Split.test)
    }
    order = list(range(len(ngrams)))
    for count in reversed(operating_counts(len(ngrams))):
        extension = fitter.extend(ngrams.subset(order[:count]), fit)
        for split, texts in splits.items():
            scored = bench.score(extension, texts, output=True)
            if count == len(ngrams) and split is Split.validation:
                order = order_by_cost(ngrams, costs(scored, ngrams))
            yield {"ngrams": count, "split": split.value, **likelihood(scored)}
