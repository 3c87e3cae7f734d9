def quality_section(
    result: Result, baseline: Side, candidate: Side, *, known_weights: bool, seed: int
) -> None:
    """Fill `quality` from the scores and the greedy texts of both sides."""
    if not known_weights:
        result.missing("quality", RANDOM)
        return
    sizes = [score.size for score in baseline.scores]
    bits = {side.name: [score.bits for score in side.scores] for side in (baseline, candidate)}
    tokens = [score.tokens for score in baseline.scores]
    same_tokenizer = baseline.tokenizer is candidate.tokenizer
    result.sections["quality"] = quality = {
        "bits_per_byte": {
            **_both(lambda side: sum(bits[side.name]) / sum(sizes), baseline, candidate),
            "difference": rate_difference(bits["baseline"], bits["candidate"], sizes, seed=seed),
        },
        "greedy_agreement": _agreement(baseline.texts, candidate.texts),
        "exact_match": mean(
            first == second for first, second in zip(baseline.texts, candidate.texts, strict=True)
        ),
        "windows": len(sizes),
        "scored_bytes": sum(sizes),
    }
    if same_tokenizer:
        perplexity = _both(
            lambda side: float(np.exp(sum(s.nats for s in side.scores) / sum(tokens))),
            baseline,
            candidate,
        )
        difference = rate_difference(
            [score.nats for score in baseline.scores],
            [score.nats for score in candidate.scores],
            tokens,
            seed=seed,
        )
        quality["perplexity"] = {
            **perplexity,
            "ratio": {name: float(np.exp(value)) for name, value in difference.items()},
        }
    else:
        result.missing("quality.perplexity", "the tokenizers differ: perplexities do not compare")
    if candidate.divergences:
        quality["kl_bits_per_token"] = sum(candidate.divergences) / np.log(2) / sum(tokens)
    else:
        result.missing(
            "quality.kl_bits_per_token", UNPAIRED if same_tokenizer else "the tokenizers differ"
        )
    result.missing("quality.tasks", "no lm-eval tasks are run by this version")


def _agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the mean share of the baseline's characters before the first difference."""
    return mean(
        common_prefix(left, right) / max(len(left), len(right), 1)
        for left, right in zip(first, second, strict=True)
    )
