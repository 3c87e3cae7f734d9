"""What n-grams save: tokens, forward steps, and what they cost to encode."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from itertools import product, takewhile
from operator import eq
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from trimtab.adaptivocab.drafting.drafter import ContextDrafter
from trimtab.adaptivocab.settings import NGramSelection
from trimtab.corpus import Split, encode
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.metrics.metric import drawn
from trimtab.generation.cost_cache import StepCosts
from trimtab.generation.drafts import Drafts
from trimtab.generation.request import Request
from trimtab.generation.sampling import Sampler, Sampling
from trimtab.generation.stopping import Detokenizer
from vocabulary_parts.bench import MAX_NGRAM, Bench, Record

SIZES = (500, 2000, 5000)
LENGTHS = (2, 3, 8)  # most of an n-gram, beside `MAX_NGRAM`
PROMPT, REPLAYED = 100, 1500  # tokens of a document
COSTS = StepCosts((1.0, 1.16, 1.23, 1.3, 1.37, 1.44, 1.52, 1.6))  # assumed, of 1 to 8 rows


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
    """Time encoding document by document, the two tokenizers in turn, each text once for each.

    A tokenizer is quicker at a text that it has met, so the base's is a new one for every size.
    """
    for size in (2000, 10000):
        ngrams = bench.mine(NGramSelection.merging, size)
        base = copy.deepcopy(bench.tokenizer)
        tokenizers = {"base": base, "extended": bench.extender.build(ngrams)}
        seconds: dict[str, list[float]] = {name: [] for name in tokenizers}
        order = Random(0)
        for document in bench.other.documents(Split.calibration):
            for name in drawn(order, [*tokenizers]):
                started = time.perf_counter()
                encode(tokenizers[name], document.text)
                seconds[name].append(time.perf_counter() - started)
        yield {
            "size": len(ngrams),
            "time_over_base": ratio(seconds["extended"], seconds["base"], paired=True, seed=0),
            "seconds": seconds,
        }


def drafting(bench: Bench) -> Iterator[Record]:
    """Replay held-out documents, from a prompt on, with drafts as long as the engine's would be."""
    drafter = ContextDrafter.count([text.tokens for text in bench.tokenized])
    for corpus in (bench.corpus, bench.other):
        documents = [encode(bench.tokenizer, d.text) for d in corpus.documents(Split.test)]
        texts = [document[:REPLAYED] for document in documents if len(document) > 2 * PROMPT]
        replays = [replay(drafter, bench.tokenizer, text[:PROMPT], text[PROMPT:]) for text in texts]
        lengths = [float(len(text) - PROMPT) for text in texts]
        steps, seconds = ([float(one) for one in column] for column in zip(*replays, strict=True))
        yield {
            "text": corpus.name, "tokens": sum(lengths), "steps": sum(steps),
            "tokens_per_step": ratio(lengths, steps, paired=True, seed=0),
            "costs": list(COSTS.relative),
            "gain": ratio(lengths, seconds, paired=True, seed=0),
            "samples": {"tokens": lengths, "steps": steps, "costs": seconds},
        }  # fmt: skip


def replay(
    drafter: ContextDrafter,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    text: list[int],
) -> tuple[int, float]:
    """Return the steps that generate a text after a prompt, and their time in plain steps."""

    def sampler() -> Sampler:
        return Sampler(Sampling(), 0, torch.device("cpu"))

    drafts = Drafts(drafter, COSTS, frozenset())
    request = Request(0, prompt, len(text), frozenset(), Detokenizer(tokenizer), sampler)
    steps, time_spent = 0, 0.0
    while request.left:
        draft = drafts.choose([request]).get(0, [])
        ahead = text[len(text) - request.left :]
        accepted = sum(takewhile(bool, map(eq, draft, ahead)))
        if draft:
            drafts.judge(0, len(draft), accepted)
        request.ids += ahead[: accepted + 1]
        steps, time_spent = steps + 1, time_spent + COSTS.of(1 + len(draft))
    return steps, time_spent
