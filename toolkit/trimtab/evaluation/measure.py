"""Collect raw samples from the models that are compared, interleaved where there are two."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from trimtab.config import MeasureConfig
from trimtab.evaluation.cache_memory import CacheKind
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators.transformers import transformers_cache
from trimtab.evaluation.memory import parameter_bytes, step_bytes
from trimtab.evaluation.scoring import divergence, score
from trimtab.evaluation.workload import Window, Workload
from trimtab.progress import track


def collect(
    contenders: Sequence[Contender], work: Workload, config: MeasureConfig, quality: bool
) -> None:
    """Run the whole workload on every contender and add the samples to it.

    Two contenders take turns window by window and prompt by prompt, and who goes first alternates;
    with one alone there is nothing to interleave.

    Parameters
    ----------
    quality : bool
        Whether likelihoods mean anything for these weights.
    """
    for one in contenders:
        one.speed.parameters = one.model.num_parameters()
        one.speed.parameter_bytes = parameter_bytes(one.model)
    if quality:
        with _generating(contenders):
            _score(contenders, work)
    # New engines, because the pages that long windows took would stay in the cache.
    with _generating(contenders):
        _generate(contenders, work, config)
        _time(contenders, work, config)
    if quality:
        _score_all_tokenizations(contenders, work, config)
    for one in contenders:
        read = step_bytes(one.model) + one.stack.extra_step_bytes()
        one.speed.step_bytes = read - one.speed.unread_head_bytes


def measure_caches(contender: Contender, candidate: Contender, work: Workload) -> None:
    """Have transformers' caches hold the candidate's largest timed generation.

    The contender generates it again. Of the candidate both kinds of cache are measured, but for
    the dynamic one where it has a cache of its own; of the baseline the dynamic one alone.
    """
    sizes = [timing.live_bytes for timing in candidate.speed.timings[: len(work.prompts)]]
    largest = sizes.index(max(sizes))
    if contender is not candidate:
        kinds = [CacheKind.dynamic]
    elif contender.speed.engine is not None:
        kinds = [CacheKind.static]
    else:
        kinds = [*CacheKind]
    for kind in track(kinds, f"Transformers' caches: {contender.name}", len(kinds)):
        contender.speed.caches[kind] = transformers_cache(
            contender.model,
            contender.tokenizer,
            work.prompts[largest],
            contender.speed.timings[largest].new_tokens,
            kind,
        )


def measure_prompt_cut(baseline: Contender, candidate: Contender, work: Workload) -> None:
    """Have the unmodified model read what the candidate read compressed: whole, and cut.

    To be called when the candidate's stack is off the model again, which the two may share.
    """
    found, samples = candidate.quality.compression, baseline.quality
    for window, compressed in track(
        zip(work.compression, found, strict=False), "Prompt cut: baseline", len(found)
    ):
        for scores, newest in (
            (samples.whole_prompt, None),
            (samples.prompt_cut, compressed.context_tokens),
        ):
            logits, tokenizer = baseline.generator.logits, baseline.base_tokenizer
            one = score(logits, tokenizer, window, newest=newest)
            scores.append(replace(baseline.finite(one), log_probs=None))


@contextmanager
def _generating(contenders: Sequence[Contender]) -> Iterator[None]:
    with ExitStack() as running:
        for one in contenders:
            running.enter_context(one.generating())
        yield


def _score(contenders: Sequence[Contender], work: Workload) -> None:
    names = _names(contenders)
    for window in track(work.windows, f"Quality: {names}", len(work.windows)):
        _score_window(contenders, window)
    for window in track(work.out_of_domain, f"Another domain: {names}", len(work.out_of_domain)):
        for one in contenders:
            one.quality.out_of_domain.append(replace(one.score(window), log_probs=None))
    for one in contenders:
        if one.changes_vocabulary:
            windows = work.windows + work.compression
            found = track(windows, f"Base tokens: {one.name}", len(windows))
            scores = [one.score_base_tokens(window) for window in found]
            one.quality.base_tokens = scores[: len(work.windows)]
            one.quality.compression = scores[len(work.windows) :]


def _score_window(contenders: Sequence[Contender], window: Window) -> None:
    scores = []
    for one in contenders:
        with one.stack.recording():
            scores.append(one.score(window))
    if len(contenders) == 2 and not contenders[1].changes_vocabulary:
        contenders[1].quality.divergences.append(divergence(scores[0], scores[1]))
    for one, found in zip(contenders, scores, strict=True):
        one.quality.windows.append(replace(found, log_probs=None))


def _score_all_tokenizations(
    contenders: Sequence[Contender], work: Workload, config: MeasureConfig
) -> None:
    windows, samples = work.marginal_likelihood, config.quality.marginal_likelihood_samples
    for one in contenders:
        if not one.stack.ngram_tokens:
            continue
        for window in track(windows, f"Marginal likelihood: {one.name}", len(windows)):
            one.quality.canonical.append(replace(one.score(window), log_probs=None))
            found = one.score_all_tokenizations(window, samples, config.seed)
            one.quality.marginal.append(found)


def _generate(contenders: Sequence[Contender], work: Workload, config: MeasureConfig) -> None:
    names = _names(contenders)
    for prompt in track(work.prompts, f"Greedy generation: {names}", len(work.prompts)):
        for one in contenders:
            with one.stack.recording():
                text = one.generator.greedy(prompt, config.generation.new_tokens)
                one.quality.texts.append(text)


def _time(contenders: Sequence[Contender], work: Workload, config: MeasureConfig) -> None:
    rounds = config.speed.warmup + config.speed.repeats
    jobs = list(itertools.product(range(rounds), range(len(work.prompts))))
    for number, index in track(jobs, f"Timing: {_names(contenders)}", len(jobs)):
        for one in contenders if (number + index) % 2 == 0 else reversed(contenders):
            timing = one.generator.teacher_forced(work.prompts[index])
            if number >= config.speed.warmup:
                one.speed.timings.append(timing)


def _names(contenders: Sequence[Contender]) -> str:
    return " and ".join(one.name for one in contenders)
