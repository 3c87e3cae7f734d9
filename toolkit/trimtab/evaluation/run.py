"""One measurement: an optimized model against the unmodified one, as one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from trimtab.arguments import require_language_model
from trimtab.config import MeasureConfig
from trimtab.corpus import Corpus, Split, encode
from trimtab.environment import environment_and_reasons
from trimtab.errors import TrimtabError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.held_out import seen_before
from trimtab.evaluation.job import Job
from trimtab.evaluation.memory import copied, device_names, reset_peaks
from trimtab.evaluation.metrics import Metric, metrics_of, prepare
from trimtab.evaluation.result import RANDOM_WEIGHTS, Result
from trimtab.evaluation.schema import SCHEMA, CalibrationRun
from trimtab.evaluation.settings import settings_of
from trimtab.generation.stopping import require_going_on
from trimtab.generation.transformers import set_aside
from trimtab.models.changes import lock_of
from trimtab.models.copies import part_that_runs
from trimtab.models.facts import require_known_tokens
from trimtab.models.fingerprint import fingerprint
from trimtab.models.predictions import require_cache, require_predictions
from trimtab.models.pretrained import short_name
from trimtab.models.state import (
    inferring,
    own_precision,
    require_evaluation,
    without_cudnn_attention,
)
from trimtab.models.view import generating_by
from trimtab.optimized import Optimized
from trimtab.progress import say
from trimtab.quiet import timing_turn

RANDOM = f"{RANDOM_WEIGHTS}: what they predict means nothing"


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
        Held-out text; of a corpus, its test split. The result warns of texts that an artifact was
        calibrated on.
    config : MeasureConfig, optional
        What is generated, read and timed; the defaults of `evaluate.py` where None.
    baseline : PreTrainedModel, optional
        A copy of the unmodified model, for a paired measurement; made where None. It generates by
        the optimized model's generation config: texts of both end with the same tokens.
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
        If a text is longer than the model has positions for, the tokenizer is not its own, every
        token ends a text, the model sees later tokens or keeps no keys and values in some layer, or
        it is in training mode.
    TrimtabError
        If there is too little text, no room for a copy of the model, what a model makes of the text
        is not finite, or what the methods made of the model was edited.
    """
    config = MeasureConfig() if config is None else config
    if not isinstance(config, MeasureConfig):
        raise TrimtabError(f"config={config!r:.60}: expected a MeasureConfig")
    if not isinstance(optimized, Optimized):
        raise TrimtabError(
            f"optimized is a {type(optimized).__name__}: expected what trimtab.apply returns, "
            "entered by a `with`"
        )
    if baseline is not None:
        require_language_model(baseline, "baseline")
    if baseline is optimized.model:
        raise TrimtabError("baseline is the optimized model itself: give a copy, or leave it out")
    if baseline is not None and part_that_runs(optimized.model, baseline) is not None:
        raise TrimtabError(
            "baseline runs parts of the optimized model: copy.deepcopy copies no function that was "
            "set as forward or hook; load a model for it, or measure with paired=False"
        )
    with lock_of(optimized.model), own_precision(), without_cudnn_attention():
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
    require_evaluation(optimized.model)
    reset_peaks(optimized.model)
    corpus = texts if isinstance(texts, Corpus) else Corpus.for_test(texts)
    documents = corpus.documents(Split.test)
    require_known_tokens(optimized.model, base, (document.text for document in documents))
    require_going_on(optimized.model, base)
    text = encode(base, documents[0].text)
    require_predictions(optimized.model, text)
    require_cache(optimized.model, text)
    job = Job(
        documents,
        base,
        optimized.model.config,
        config,
        known_weights=subject is None or subject.known_weights,
        changes_vocabulary=applied.tokenizer is not base or applied.output_tokenizer is not base,
        paired=config.paired,
    )
    metrics = prepare(job)
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
    told = ", ".join(names) or "none, the unmodified model again"
    say(f"Stack: {told}; kernel: {optimized.applied.kernel}")
    result = Result()
    if seen := seen_before(documents, optimized.artifacts):
        say(f"Warning: {seen}")
        result.warn(seen)
    for name, value in {
        "schema": SCHEMA,
        "status": "ok",
        "label": label or " ".join(names) or "baseline",
        "methods": names,
        "settings": settings_of(optimized.stack.methods, config),
        "artifacts": {name: artifact.key.digest for name, artifact in optimized.artifacts.items()},
        "calibration": {
            name: {
                part: artifact.run[part]
                for part in CalibrationRun.__annotations__
                if part in artifact.run
            }
            for name, artifact in optimized.artifacts.items()
        },
        "model.name": subject.name,
        "model.architecture": type(optimized.model).__name__,
        "model.fingerprint": subject.fingerprint,
        "model.dtype": str(optimized.model.dtype).removeprefix("torch."),
        "corpus.name": corpus.name,
        "corpus.digest": corpus.digest,
        "corpus.documents": len(documents),
        "generation.set_aside": set_aside(optimized.model),
        "kernel": optimized.applied.kernel,
        "device": device_names(optimized.model),
    }.items():
        result.put(name, value)
    first, candidate, measured = _measure(optimized, metrics, baseline)
    for metric in metrics.values():
        metric.summarise(result, first, candidate)
    for kind in metrics_of(config.metrics):
        if kind not in metrics:
            for name in kind.fields:
                result.missing(name, RANDOM)
    result.add(measured)
    if "sparsity" not in measured:
        result.missing("sparsity", "no method of the stack drops activations")
    _environment(result, config.seed)
    return result.content


def _measure(
    optimized: Optimized, metrics: Mapping[type[Metric], Metric], baseline: PreTrainedModel | None
) -> tuple[Contender, Contender, dict[str, Any]]:
    """Take all samples; return the baseline, the candidate, and what the methods measured.

    Without a copy for a baseline the optimized model is measured first, and then without its
    methods.
    """
    tokenizer = optimized.base_tokenizer
    candidate = Contender("candidate", optimized.model, tokenizer, optimized.applied)

    def take(contenders: Sequence[Contender]) -> None:
        for metric in metrics.values():
            # Of every metric its own engine: pages that long windows took would stay in the cache.
            with ExitStack() as running:
                if metric.times:
                    running.enter_context(timing_turn())
                for one in contenders if metric.generates else ():
                    running.enter_context(one.generating())
                metric.measure(contenders)

    if baseline is not None:
        view = generating_by(baseline, optimized.model.generation_config)
        first = Contender("baseline", view, tokenizer)
        with inferring(baseline):
            take([first, candidate])
        return first, candidate, optimized.applied.measured()
    take([candidate])
    measured = optimized.applied.measured()
    with optimized.suspended() as model, inferring(model):
        first = Contender("baseline", model, tokenizer)
        take([first])
    return first, candidate, measured


def _environment(result: Result, seed: int) -> None:
    """Write where it was measured; what the machine does not have is None, with a reason."""
    environment, reasons = environment_and_reasons(seed)
    for name, value in environment.items():
        result.put(f"environment.{name}", value)
    for name, reason in reasons.items():
        result.missing(f"environment.{name}", reason)
    for name, value in environment["packages"].items():
        if value is None:
            result.missing(f"environment.packages.{name}", "not installed")
