"""The section `quality` of result.json."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np

from trimtab.config import QualityConfig
from trimtab.evaluation.contenders import Contender, QualitySamples
from trimtab.evaluation.intervals import rate_difference
from trimtab.evaluation.results.result import Result, Section
from trimtab.evaluation.scoring import Score
from trimtab.evaluation.workload import OUT_OF_DOMAIN

Scores = dict[str, list[Score]]

RANDOM = "the weights are random: what they predict means nothing"
UNPAIRED = "paired=false: the two models were never scored together"
SAME = "the vocabulary is the unmodified model's"
DIFFERENT = "the tokenizers differ"


def quality_section(
    result: Result,
    baseline: Contender,
    candidate: Contender,
    config: QualityConfig,
    *,
    known_weights: bool,
    seed: int,
) -> None:
    """Fill `quality` from the scores and the greedy texts of both contenders."""
    if not known_weights:
        result.missing("quality", RANDOM)
        return
    first, second = baseline.quality, candidate.quality
    texts = _compared_texts(baseline, candidate)
    result.sections["quality"] = quality = {
        "bits_per_byte": _bits_per_byte(first.windows, second.windows, seed),
        "greedy_agreement": mean(
            common_prefix(one, other) / max(len(one), len(other), 1) for one, other in texts
        ),
        "exact_match": mean(one == other for one, other in texts),
        "windows": len(first.windows),
        "scored_bytes": sum(score.size for score in first.windows),
    }
    if candidate.changes_vocabulary:
        result.missing("quality.perplexity", f"{DIFFERENT}: perplexities do not compare")
        base_tokens = _bits_per_byte(first.windows, second.base_tokens, seed)
        quality["base_tokens"] = {"bits_per_byte": base_tokens}
    else:
        quality["perplexity"] = _perplexity(first.windows, second.windows, seed)
        result.missing("quality.base_tokens", SAME)
    if second.divergences:
        tokens = sum(score.tokens for score in first.windows)
        quality["kl_bits_per_token"] = sum(second.divergences) / np.log(2) / tokens
    else:
        reason = DIFFERENT if candidate.changes_vocabulary else UNPAIRED
        result.missing("quality.kl_bits_per_token", reason)
    _compression(result, baseline, candidate, config, seed)
    _out_of_domain(result, first.out_of_domain, second.out_of_domain, config, seed)
    _marginal_likelihood(result, candidate, config, seed)
    result.missing("quality.tasks", "no lm-eval tasks are run by this version")


def compression_scores(baseline: QualitySamples, candidate: QualitySamples) -> Scores:
    """Return the scores after compressed prompts and after what they are compared with."""
    return {
        "baseline": baseline.whole_prompt,
        "candidate": candidate.compression,
        "prompt_cut": baseline.prompt_cut,
    }


def common_prefix(first: str, second: str) -> int:
    """Return the number of characters before the first that differs."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


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
    result: Result, baseline: Contender, candidate: Contender, config: QualityConfig, seed: int
) -> None:
    size = config.compression_context_bytes + config.compression_bytes
    scores = compression_scores(baseline.quality, candidate.quality)
    if not candidate.changes_vocabulary:
        result.missing("quality.compression", SAME)
    elif config.compression_windows == 0:
        result.missing("quality.compression", "quality.compression_windows=0")
    elif len(scores["candidate"]) < 2:
        result.missing(
            "quality.compression",
            f"the test documents hold fewer than 2 stretches of {size} bytes: use a larger corpus",
        )
    else:
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
            "windows": len(scores["candidate"]),
        }


def _out_of_domain(
    result: Result,
    baseline: Sequence[Score],
    candidate: Sequence[Score],
    config: QualityConfig,
    seed: int,
) -> None:
    if config.out_of_domain_windows == 0:
        result.missing("quality.out_of_domain", "quality.out_of_domain_windows=0")
    elif len(candidate) < 2:
        result.missing("quality.out_of_domain", f"this Python comes without the {OUT_OF_DOMAIN}")
    else:
        result.sections["quality"]["out_of_domain"] = {
            "bits_per_byte": _bits_per_byte(baseline, candidate, seed),
            "text": OUT_OF_DOMAIN,
            "windows": len(candidate),
        }


def _marginal_likelihood(
    result: Result, candidate: Contender, config: QualityConfig, seed: int
) -> None:
    name, samples = "quality.marginal_likelihood", candidate.quality
    if not candidate.stack.ngram_tokens:
        result.missing(name, "no output token stands for several base tokens")
    elif config.marginal_likelihood_windows == 0:
        result.missing(name, "quality.marginal_likelihood_windows=0")
    elif len(samples.marginal) < 2:
        result.missing(name, "fewer than 2 prompts were compressed")
    else:
        result.sections["quality"]["marginal_likelihood"] = {
            "bits_per_byte": {
                "canonical": _rate(samples.canonical),
                "marginal": _rate(samples.marginal),
                "difference": _difference(samples.canonical, samples.marginal, seed),
            },
            "samples": config.marginal_likelihood_samples,
            "windows": len(samples.marginal),
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


def _compared_texts(baseline: Contender, candidate: Contender) -> list[tuple[str, str]]:
    """Return the greedy texts in pairs.

    Where outputs are in other tokens, as many of them are a longer or a shorter text: both are
    then cut to the shorter one's length.
    """
    pairs = list(zip(baseline.quality.texts, candidate.quality.texts, strict=True))
    if candidate.output_tokenizer is baseline.output_tokenizer:
        return pairs
    lengths = [min(len(first), len(second)) for first, second in pairs]
    return [
        (first[:length], second[:length])
        for (first, second), length in zip(pairs, lengths, strict=True)
    ]
