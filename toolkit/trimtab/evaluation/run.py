"""One measurement: an optimized model against the unmodified one, as one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from trimtab.config import MeasureConfig
from trimtab.corpora import Document
from trimtab.corpus import Corpus, Split
from trimtab.errors import TrimtabError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.measure import collect, measure_caches, measure_prompt_cut
from trimtab.evaluation.memory import copied, copy_bandwidth
from trimtab.evaluation.results.cache import engine_section, kv_section
from trimtab.evaluation.results.environment import environment_section, memory_section
from trimtab.evaluation.results.quality import quality_section
from trimtab.evaluation.results.result import Result
from trimtab.evaluation.results.samples import samples_section
from trimtab.evaluation.results.speed import speed_section
from trimtab.evaluation.results.tokens import tokens_section
from trimtab.evaluation.workload import (
    Workload,
    compression_windows,
    marginal_likelihood_windows,
    out_of_domain_windows,
    prompts,
    quality_windows,
    require_room,
)
from trimtab.generation.transformers import set_aside
from trimtab.models.changes import lock_of
from trimtab.models.facts import require_known_tokens
from trimtab.models.fingerprint import fingerprint
from trimtab.models.pretrained import short_name
from trimtab.models.state import inferring, own_precision, require_evaluation
from trimtab.optimized import Optimized
from trimtab.progress import say

SCHEMA = 3


@dataclass(frozen=True)
class Subject:
    """What a result says of the unmodified model.

    Parameters
    ----------
    name, fingerprint : str
    known_weights : bool
        False where the weights are random, so that no quality may be reported.
    """

    name: str
    fingerprint: str
    known_weights: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel) -> Subject:
        """Describe a model that somebody else has loaded."""
        name = model.config.name_or_path or type(model).__name__
        return cls(short_name(name), fingerprint(model))


def measure(
    optimized: Optimized,
    texts: Sequence[str] | Corpus,
    config: MeasureConfig | None = None,
    *,
    baseline: PreTrainedModel | None = None,
    subject: Subject | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Measure an optimized model against the unmodified one: the content of result.json.

    Parameters
    ----------
    optimized : Optimized
        Within its ``with``.
    texts : sequence of str or Corpus
        Held-out text; of a corpus, its test split.
    config : MeasureConfig, optional
        What is generated, read and timed; the defaults of `evaluate.py` where None.
    baseline : PreTrainedModel, optional
        A copy of the unmodified model, for a paired measurement; made where None.
    subject : Subject, optional
        What the result says of the unmodified model; found out where None.
    label : str, optional
        What tells this measurement from others in a report; the methods' names where None.

    Returns
    -------
    dict
        JSON values only, see docs/results.md.

    Raises
    ------
    MisfitError
        If a text is longer than the model has positions for, the tokenizer is not its own, or the
        model is in training mode.
    TrimtabError
        If there is too little text, no room for a copy of the model, or what a model makes of the
        text is not finite.
    """
    config = MeasureConfig() if config is None else config
    if not isinstance(config, MeasureConfig):
        raise TrimtabError(f"config={config!r:.60}: expected a MeasureConfig")
    if not isinstance(optimized, Optimized):
        raise TrimtabError(
            f"optimized is a {type(optimized).__name__}: expected what trimtab.apply returns, "
            "entered by a `with`"
        )
    if baseline is optimized.model:
        raise TrimtabError("baseline is the optimized model itself: give a copy, or leave it out")
    with lock_of(optimized.model), own_precision():
        require_evaluation(optimized.model)
        return _measured(optimized, texts, config, baseline, subject, label)


def _measured(
    optimized: Optimized,
    texts: Sequence[str] | Corpus,
    config: MeasureConfig,
    baseline: PreTrainedModel | None,
    subject: Subject | None,
    label: str | None,
) -> dict[str, Any]:
    base, applied = optimized.base_tokenizer, optimized.applied
    corpus = texts if isinstance(texts, Corpus) else Corpus.for_test(texts)
    documents = corpus.documents(Split.test)
    require_known_tokens(optimized.model, base, (document.text for document in documents))
    work = _workload(documents, optimized, config)
    require_room(
        work,
        base,
        optimized.model,
        config.quality if subject is None or subject.known_weights else None,
        config.generation,
        compressed=applied.tokenizer is not base or applied.output_tokenizer is not base,
    )
    if subject is None or (config.paired and baseline is None):
        with optimized.suspended() as model:
            subject = subject or Subject.of(model)
            if config.paired and baseline is None:
                baseline = copied(model)
            elif baseline is not None and fingerprint(baseline) != subject.fingerprint:
                raise TrimtabError(
                    "baseline is another model than the one that was optimized: give a copy of "
                    "that, or leave it out"
                )
    names = optimized.stack.names
    say(f"Stack: {', '.join(names) or 'none'}; kernel: {optimized.applied.kernel}")
    first, candidate, measured = _collected(optimized, work, config, baseline, subject)

    result = Result()
    result.sections |= {
        "schema": SCHEMA,
        "status": "ok",
        "label": label or " ".join(names) or "baseline",
        "methods": names,
        "artifacts": {name: artifact.key.digest for name, artifact in optimized.artifacts.items()},
        "model": {
            "name": subject.name,
            "architecture": type(optimized.model).__name__,
            "fingerprint": subject.fingerprint,
            "dtype": str(optimized.model.dtype).removeprefix("torch."),
            "parameters": first.speed.parameters,
        },
        "corpus": {"name": corpus.name, "digest": corpus.digest, "documents": len(documents)},
        "generation": {"set_aside": set_aside(optimized.model)},
        "kernel": optimized.applied.kernel,
        "device": str(optimized.model.device),
    }
    quality_section(
        result,
        first,
        candidate,
        config.quality,
        known_weights=subject.known_weights,
        seed=config.seed,
    )
    tokens_section(result, first, candidate)
    kv_section(result, first, candidate)
    speed_section(
        result,
        first,
        candidate,
        paired=config.paired,
        bandwidth=copy_bandwidth(optimized.model.device),
        seed=config.seed,
    )
    engine_section(result, candidate)
    result.add(measured)
    if "sparsity" not in measured:
        result.missing("sparsity", "no method of the stack drops activations")
    memory_section(result, first, candidate, optimized.model.device)
    result.missing("energy", "this version reads no energy counter")
    environment_section(result, config.seed)
    samples_section(result, first, candidate, work)
    return {**result.sections, "reasons": result.reasons}


def _workload(
    documents: Sequence[Document], optimized: Optimized, config: MeasureConfig
) -> Workload:
    compression = compression_windows(documents, config.quality)
    return Workload(
        quality_windows(documents, config.quality),
        prompts(documents, optimized.base_tokenizer, config.generation),
        compression,
        out_of_domain_windows(config.quality),
        marginal_likelihood_windows(compression, config.quality),
    )


def _collected(
    optimized: Optimized,
    work: Workload,
    config: MeasureConfig,
    baseline: PreTrainedModel | None,
    subject: Subject,
) -> tuple[Contender, Contender, dict[str, Any]]:
    """Return the baseline and the candidate, measured, and what the methods measured.

    Without a copy for a baseline the optimized model is measured first, and then without its
    methods.
    """
    quality, tokenizer = subject.known_weights, optimized.base_tokenizer
    candidate = Contender("candidate", optimized.model, tokenizer, optimized.applied)
    if baseline is not None:
        first = Contender("baseline", baseline, tokenizer)
        with inferring(baseline):
            collect([first, candidate], work, config, quality)
            measured = optimized.applied.measured()
            measure_caches(candidate, candidate, work)
            _finish(first, candidate, work)
        return first, candidate, measured
    collect([candidate], work, config, quality)
    measured = optimized.applied.measured()
    measure_caches(candidate, candidate, work)
    with optimized.suspended() as model, inferring(model):
        first = Contender("baseline", model, tokenizer)
        collect([first], work, config, quality)
        _finish(first, candidate, work)
    return first, candidate, measured


def _finish(baseline: Contender, candidate: Contender, work: Workload) -> None:
    """Have the unmodified model do what only the candidate's samples tell it to."""
    measure_caches(baseline, candidate, work)
    if candidate.quality.compression:
        measure_prompt_cut(baseline, candidate, work)
