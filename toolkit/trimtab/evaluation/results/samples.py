"""The section `samples` of result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.results.quality import compression_scores
from trimtab.evaluation.results.result import Result, Section
from trimtab.evaluation.scoring import Score
from trimtab.evaluation.workload import Window, Workload


def samples_section(
    result: Result, baseline: Contender, candidate: Contender, work: Workload
) -> None:
    """Fill `samples`: every raw sample that a figure was made from, and the texts."""
    first, second = baseline.quality, candidate.quality
    result.sections["samples"] = {
        "timings": [
            {"model": one.name, "prompt": index % len(work.prompts), **asdict(timing)}
            for one in (baseline, candidate)
            for index, timing in enumerate(one.speed.timings)
        ],
        "windows": _rows(work.windows, {"baseline": first.windows, "candidate": second.windows}),
        "base_tokens": _rows(work.windows, {"candidate": second.base_tokens}),
        "out_of_domain": _rows(
            work.out_of_domain,
            {"baseline": first.out_of_domain, "candidate": second.out_of_domain},
        ),
        "compression": _rows(work.compression, compression_scores(first, second)),
        "marginal_likelihood": _rows(
            work.marginal_likelihood, {"canonical": second.canonical, "marginal": second.marginal}
        ),
        "texts": [
            {
                "document": prompt.document,
                "prompt": prompt.text,
                "baseline": one,
                "candidate": other,
            }
            for prompt, one, other in zip(work.prompts, first.texts, second.texts, strict=True)
        ],
    }


def _rows(windows: Sequence[Window], scores: Mapping[str, Sequence[Score]]) -> list[Section]:
    return [
        {
            "model": model,
            "document": window.document,
            "bits": score.bits,
            "tokens": score.tokens,
            "context_tokens": score.context_tokens,
            "bytes": score.size,
        }
        for model, found in scores.items()
        for window, score in zip(windows, found, strict=False)
    ]
