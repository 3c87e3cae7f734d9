"""The section `quality` of result.json."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np

from trimtab.config import QualityConfig
from trimtab.evaluation.intervals import rate_difference
from trimtab.evaluation.quality import Score, common_prefix
from trimtab.evaluation.result import Result, Section, compression_scores
from trimtab.evaluation.sides import Side
from trimtab.evaluation.text import CANARY

RANDOM = "the weights are random: what they predict means nothing"
UNPAIRED = "paired=false: the two models were never scored together"
SAME = "the vocabulary is the unmodified model's"
DIFFERENT = "the tokenizers differ"


def quality_section(
    result: Result,
    baseline: Side,
    candidate: Side,
    config: QualityConfig,
    *,
    known_weights: bool,
    seed: int,
) -> None:
    """Fill `quality` from the scores and the greedy texts of both sides."""
    if not known_weights:
        result.missing("quality", RANDOM)
        return
    texts = _compared_texts(baseline, candidate)
    result.sections["quality"] = quality = {
        "bits_per_byte": _bits_per_byte(baseline.scores, candidate.scores, seed),
        "greedy_agreement": mean(
            common_prefix(first, second) / max(len(first), len(second), 1)
            for first, second in texts
        ),
        "exact_match": mean(first == second for first, second in texts),
        "windows": len(baseline.scores),
        "scored_bytes": sum(score.size for score in baseline.scores),
    }
    tokens = sum(score.tokens for score in baseline.scores)
    if candidate.changes_vocabulary:
        result.missing("quality.perplexity", f"{DIFFERENT}: perplexities do not compare")
        scores = baseline.scores, candidate.base_scores
        quality["base_tokens"] = {"bits_per_byte": _bits_per_byte(*scores, seed)}
    else:
        quality["perplexity"] = _perplexity(baseline.scores, candidate.scores, seed)
        result.missing("quality.base_tokens", SAME)
    if candidate.divergences:
        quality["kl_bits_per_token"] = sum(candidate.divergences) / np.log(2) / tokens
    else:
        reason = DIFFERENT if candidate.changes_vocabulary else UNPAIRED
        result.missing("quality.kl_bits_per_token", reason)
    _compression(result, baseline, candidate, config, seed)
    _canary(result, baseline, candidate, config, seed)
    _marginal(result, candidate, config, seed)
    result.missing("quality.tasks", "no lm-eval tasks are run by this version")


def _perplexity(first: Sequence[Score], second: Sequence[Score], seed: int) -> Section:
    nats = {
        name: [score.nats for score in scores]
        for name, scores in (("baseline", first), ("candidate", second))
    }
    tokens = [score.tokens for score in first]
    difference = rate_difference(nats["baseline"], nats["candidate"], tokens, seed=seed)
    return {
        **{name: float(np.exp(sum(found) / sum(tokens))) for name, found in nats.items()},
        "ratio": {name: float(np.exp(value)) for name, value in difference.items()},
    }


def _compression(
    result: Result, baseline: Side, candidate: Side, config: QualityConfig, seed: int
) -> None:
    size = config.compression_context_bytes + config.compression_bytes
    if not candidate.changes_vocabulary:
        result.missing("quality.compression", SAME)
    elif config.compression_windows == 0:
        result.missing("quality.compression", "quality.compression_windows=0")
    elif len(candidate.compression) < 2:
        result.missing(
            "quality.compression",
            f"the test documents hold fewer than 2 stretches of {size} bytes: use a larger corpus",
        )
    else:
        scores = compression_scores(baseline, candidate)
        difference = _difference(scores["prompt_cut"], scores["candidate"], seed)
        tokens = {
            name: sum(score.context_tokens for score in found) for name, found in scores.items()
        }
        shorter = tokens["candidate"] < tokens["baseline"]  # else the difference is rounding
        result.sections["quality"]["compression"] = {
            "bits_per_byte": {
                **{name: _rate(found) for name, found in scores.items()},
                "difference": difference,
            },
            "tokens": tokens,
            "beats_control": shorter and difference["high"] < 0,
            "windows": len(candidate.compression),
        }


def _canary(
    result: Result, baseline: Side, candidate: Side, config: QualityConfig, seed: int
) -> None:
    if config.out_of_domain_windows == 0:
        result.missing("quality.canary", "quality.out_of_domain_windows=0")
    elif len(candidate.canary) < 2:
        result.missing("quality.canary", f"this Python comes without the {CANARY}")
    else:
        result.sections["quality"]["canary"] = {
            "bits_per_byte": _bits_per_byte(baseline.canary, candidate.canary, seed),
            "text": CANARY,
            "windows": len(candidate.canary),
        }


def _marginal(result: Result, candidate: Side, config: QualityConfig, seed: int) -> None:
    if candidate.stack is None or not candidate.stack.ngram_tokens:
        result.missing("quality.marginal", "no output token stands for several base tokens")
    elif config.marginal_windows == 0:
        result.missing("quality.marginal", "quality.marginal_windows=0")
    elif len(candidate.marginal) < 2:
        result.missing("quality.marginal", "fewer than 2 prompts were compressed")
    else:
        result.sections["quality"]["marginal"] = {
            "bits_per_byte": {
                "canonical": _rate(candidate.canonical),
                "marginal": _rate(candidate.marginal),
                "difference": _difference(candidate.canonical, candidate.marginal, seed),
            },
            "samples": config.marginal_samples,
            "windows": len(candidate.marginal),
        }


def _bits_per_byte(first: Sequence[Score], second: Sequence[Score], seed: int) -> Section:
    return {
        "baseline": _rate(first),
        "candidate": _rate(second),
        "difference": _difference(first, second, seed),
    }


def _rate(scores: Sequence[Score]) -> float:
    return sum(score.bits for score in scores) / sum(score.size for score in scores)


def _difference(first: Sequence[Score], second: Sequence[Score], seed: int) -> Section:
    bits = [[score.bits for score in scores] for scores in (first, second)]
    sizes = [score.size for score in first]
    return dict(rate_difference(bits[0], bits[1], sizes, seed=seed))


def _compared_texts(baseline: Side, candidate: Side) -> list[tuple[str, str]]:
    """Return the greedy texts in pairs.

    The same number of other tokens is a longer or a shorter text: then both are cut to the
    shorter one's length.
    """
    pairs = list(zip(baseline.texts, candidate.texts, strict=True))
    if candidate.output_tokenizer is baseline.output_tokenizer:
        return pairs
    lengths = [min(len(first), len(second)) for first, second in pairs]
    return [
        (first[:length], second[:length])
        for (first, second), length in zip(pairs, lengths, strict=True)
    ]
