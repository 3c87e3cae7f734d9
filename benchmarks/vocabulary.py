"""AdaptiVocab's parts, one by one: what n-grams save, what their rows cost, what is really free.

    python benchmarks/vocabulary.py [--text docs|source] [--size 2000] [--parts rows …]

Everything is measured on held-out documents of the text that was calibrated on, and, where an
n-gram could do harm, on the other text too: Python's documentation and its standard library's
source code. Parts: `mining` (tokens saved by size and selection, seconds), `encoding` (the
extended tokenizer's time over the base's), `drafts` (forward steps saved), `rows` (bits per byte
of whole texts in n-grams, ungated, by kind of rows; and what of it the input rows alone lose) and
`dial` (the least costly n-grams first).
Writes vocabulary.json with every passage's likelihoods, and prints tables.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from arguments import positive
from texts import python_texts

from toolkit.adaptivocab.calibrate import SELECTIONS
from toolkit.adaptivocab.drafts import Drafts
from toolkit.adaptivocab.extended import NewRows, extended
from toolkit.adaptivocab.fit import ReadText, RowFitter, read_texts
from toolkit.adaptivocab.gating import SHARES, Scored, costs, order_by_cost
from toolkit.adaptivocab.merging import PairMerging
from toolkit.adaptivocab.ngrams import NGrams
from toolkit.adaptivocab.passages import Passage, cut
from toolkit.adaptivocab.rows import Rows
from toolkit.adaptivocab.settings import Choice
from toolkit.adaptivocab.streams import streams
from toolkit.adaptivocab.teacher import predict
from toolkit.adaptivocab.tokenizer import Expression
from toolkit.config import DType, EmbeddedModel
from toolkit.corpus import Corpus, Split, encode
from toolkit.environment import describe_environment, prepare
from toolkit.evaluation.intervals import Estimate, rate_difference, ratio
from toolkit.files import write_json
from toolkit.models import load_model
from toolkit.progress import say

PARTS = ("mining", "encoding", "drafts", "rows", "dial")
SIZES = (500, 2000, 5000)
MAX_PIECES, PIECES = 4, (2, 3, 8)
WINDOW = 512
ENOUGH = 10**7  # base tokens: all of either text
Record = dict[str, Any]


class Bench:
    """One model, a text to calibrate on, another to beware of, and what both parts share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.loaded = load_model(EmbeddedModel(device="auto", dtype=DType.auto))
        self.texts = python_texts()
        self.corpus = self.texts.pop(options.text)
        (self.other,) = self.texts.values()
        self.size, self.kinds = options.size, options.rows
        self.fit_tokens, self.test_tokens = options.fit_tokens, options.test_tokens
        self.tokenizer = self.loaded.tokenizer
        self.expression = Expression.of(self.tokenizer)
        documents = self.corpus.documents(Split.calibration)
        self.streams = list(streams(documents, self.expression, ENOUGH))
        embedding: Any = self.loaded.model.get_input_embeddings()
        self.base_size = max(embedding.weight.shape[0], len(self.tokenizer))

    def mine(self, choice: Choice, size: int, max_pieces: int = MAX_PIECES) -> NGrams:
        selection = SELECTIONS[choice](
            self.streams, max_pieces, self.expression.admissible, self.expression.aligned
        )
        return NGrams(self.base_size, tuple(selection.run(size).pieces))

    def saving(self, ngrams: NGrams, corpus: Corpus) -> Estimate:
        """Return the share of held-out tokens saved, its interval by resampling documents."""
        extended_tokenizer = self.expression.build(ngrams)
        pairs = []
        for document in corpus.documents(Split.test):
            merged = encode(extended_tokenizer, document.text)
            base = ngrams.expand(merged)
            assert base == encode(self.tokenizer, document.text)
            pairs.append((float(len(base)), float(len(merged))))
        base_tokens, merged_tokens = zip(*pairs, strict=True)
        return rate_difference(merged_tokens, base_tokens, base_tokens, seed=0)

    def read(self, corpus: Corpus, split: Split, tokens: int) -> list[ReadText]:
        texts = cut(corpus.documents(split), self.tokenizer, tokens, WINDOW)
        return read_texts(self.loaded.model, self.tokenizer, texts, f"{corpus.name}, {split}")

    def fitter(self, rows: Rows) -> RowFitter:
        tokens = [stream.tokens for stream in self.streams]
        return RowFitter(self.loaded.model, self.tokenizer, tokens, rows)


def mining(bench: Bench) -> Iterator[Record]:
    cases = [(choice, size, MAX_PIECES) for choice, size in product(Choice, SIZES)]
    cases += [(Choice.merging, bench.size, pieces) for pieces in PIECES]
    tokens = sum(len(stream.tokens) for stream in bench.streams)
    for choice, size, pieces in cases:
        started = time.perf_counter()
        ngrams = bench.mine(choice, size, pieces)
        seconds = time.perf_counter() - started
        yield {
            "selection": choice.value, "max_pieces": pieces, "size": len(ngrams),
            "mined_tokens": tokens, "seconds": seconds,
            "saving": bench.saving(ngrams, bench.corpus),
            "other_saving": bench.saving(ngrams, bench.other),
        }  # fmt: skip


def encoding(bench: Bench) -> Iterator[Record]:
    """Time encoding document by document, the two tokenizers in turn, each text once for each."""
    for size in (2000, 10000):
        ngrams = bench.mine(Choice.merging, size)
        tokenizers = {"base": bench.tokenizer, "extended": bench.expression.build(ngrams)}
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


def drafts(bench: Bench) -> Iterator[Record]:
    special = bench.tokenizer.added_tokens_decoder
    mined = PairMerging(
        bench.streams, MAX_PIECES, lambda pieces, _: special.keys().isdisjoint(pieces), False
    ).run(bench.size)
    ngrams = NGrams(bench.base_size, tuple(mined.pieces))
    counted = Drafts.count(ngrams, [stream.tokens for stream in bench.streams])
    for corpus in (bench.corpus, bench.other):
        tokens = [encode(bench.tokenizer, d.text) for d in corpus.documents(Split.test)]
        lengths = [float(len(stream)) for stream in tokens]
        steps = [float(counted.steps(stream)) for stream in tokens]
        yield {
            "text": corpus.name, "tokens": sum(lengths), "steps": sum(steps),
            "tokens_per_step": ratio(lengths, steps, paired=True, seed=0),
        }  # fmt: skip


def rows(bench: Bench) -> Iterator[Record]:
    ngrams = bench.mine(Choice.merging, bench.size)
    tokenizer = bench.expression.build(ngrams)
    fitted = {Rows.closed, Rows.distilled} & set(bench.kinds)
    fit = bench.read(bench.corpus, Split.calibration, bench.fit_tokens) if fitted else []
    tests = {
        corpus.name: bench.read(corpus, Split.test, bench.test_tokens)
        for corpus in (bench.corpus, bench.other)
    }
    for kind in bench.kinds:
        started = time.perf_counter()
        fitter = bench.fitter(kind)
        new = fitter.fit(ngrams, tokenizer, fit)
        seconds = time.perf_counter() - started
        for text, test in tests.items():
            passages = [Passage.of(part.text, tokenizer, ngrams) for part in test]
            scored = Scored.of(bench.loaded.model, new, passages, test, fitter.start)
            with extended(bench.loaded.model, new, output=True):
                mass = emitted(bench, passages, ngrams, fitter.start)
            yield {
                "rows": kind.value, "text": text, "fit_seconds": seconds,
                **likelihood(scored),
                "input_difference": input_loss(bench, new, passages, test, fitter.start), **mass,
            }  # fmt: skip


def input_loss(
    bench: Bench,
    new: NewRows,
    passages: Sequence[Passage],
    test: Sequence[ReadText],
    start: int | None,
) -> Estimate:
    """Return bits per byte that the base head loses behind n-grams instead of base tokens.

    Of the first base token of every merged one alone: there both models say what comes next.
    """
    bits: list[list[float]] = [[], []]
    with extended(bench.loaded.model, new, output=False):
        for passage, text in zip(passages, test, strict=True):
            logits, _ = predict(bench.loaded.model, passage.merged, start)
            firsts = passage.base[passage.starts].to(logits.device)
            nats = -logits.log_softmax(-1).gather(1, firsts[:, None]).double().sum()
            base_nats = text.reading.nats[passage.starts].sum()
            for part, value in zip(bits, (base_nats, nats), strict=True):
                part.append(float(value) / math.log(2))
    return rate_difference(*bits, [float(passage.size) for passage in passages], seed=0)


def emitted(bench: Bench, passages: Sequence[Passage], ngrams: NGrams, start: int | None) -> Record:
    """Return how often n-grams are predicted, and how often they are there."""
    predicted, there, positions = 0.0, 0, 0
    for passage in passages[:4]:
        logits, _ = predict(bench.loaded.model, passage.merged, start)
        predicted += float(logits.softmax(-1)[:, ngrams.base_size :].sum())
        there += int((passage.merged >= ngrams.base_size).sum())
        positions += len(passage.merged)
    return {"emitted": predicted / positions, "emitted_in_text": there / positions}


def likelihood(scored: Scored) -> Record:
    """Return bits per byte of both models, and the paired difference."""
    bits = {
        name: [float(part.sum()) / math.log(2) for part in parts]
        for name, parts in (("base", scored.base_nats), ("merged", scored.nats))
    }
    sizes = [float(passage.size) for passage in scored.passages]
    point = scored.point(0)
    return {
        "saving": point.saving,
        "bits_per_byte": point.bits_per_byte,
        "base_bits_per_byte": point.base_bits_per_byte,
        "difference": rate_difference(bits["base"], bits["merged"], sizes, seed=0),
        "bits": bits,
        "bytes": sizes,
    }


def dial(bench: Bench) -> Iterator[Record]:
    """Order n-grams by their cost on validation text, and merge more and more of them."""
    ngrams = bench.mine(Choice.merging, bench.size)
    model = bench.loaded.model
    fitter = bench.fitter(Rows.closed)
    fit = bench.read(bench.corpus, Split.calibration, bench.fit_tokens)
    splits = {
        split: bench.read(bench.corpus, split, bench.test_tokens)
        for split in (Split.validation, Split.test)
    }
    order = list(range(len(ngrams)))
    for share in sorted(SHARES, reverse=True):
        subset = ngrams.subset(order[: max(round(share * len(ngrams)), 1)])
        tokenizer = bench.expression.build(subset)
        new = fitter.fit(subset, tokenizer, fit)
        for split, texts in splits.items():
            passages = [Passage.of(part.text, tokenizer, subset) for part in texts]
            scored = Scored.of(model, new, passages, texts, fitter.start)
            if share == 1 and split is Split.validation:
                order = order_by_cost(ngrams, costs(scored, ngrams))
            yield {"ngrams": len(subset), "split": split.value, **likelihood(scored)}


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
    parser.add_argument("--text", choices=("docs", "source"), default="docs")
    parser.add_argument("--size", type=positive, default=2000)
    parser.add_argument("--fit-tokens", type=positive, default=32768)
    parser.add_argument("--test-tokens", type=positive, default=8192)
    parser.add_argument("--rows", nargs="*", type=Rows, default=list(Rows))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("vocabulary-benchmark"))
    options = parser.parse_args()
    if options.test_tokens < 2 * WINDOW:
        parser.error(
            f"--test-tokens {options.test_tokens}: expected at least {2 * WINDOW}, two passages "
            f"of {WINDOW}, for an interval"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(0, None)
    bench = Bench(options)
    found: dict[str, Any] = {"environment": describe_environment(0), "text": bench.corpus.name}
    for part in options.parts:
        found[part] = []
        for record in globals()[part](bench):
            found[part].append(record)
            say(f"{part}: {summary(record)}")
            write_json(options.out / "vocabulary.json", found)


if __name__ == "__main__":
    main()
