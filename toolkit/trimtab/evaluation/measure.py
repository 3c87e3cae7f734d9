"""Collect raw samples from the models that are compared, interleaved where there are two."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from trimtab.config import MeasureConfig
from trimtab.evaluation.cache_memory import CacheKind
from trimtab.evaluation.generation import transformers_cache
from trimtab.evaluation.memory import parameter_bytes, step_bytes
from trimtab.evaluation.quality import divergence, predicting, score
from trimtab.evaluation.sides import Side, Workload
from trimtab.evaluation.text import Window
from trimtab.progress import track


def collect(sides: Sequence[Side], work: Workload, config: MeasureConfig, quality: bool) -> None:
    """Run the whole workload on every side and add the samples to it.

    Two sides take turns window by window and prompt by prompt, and who goes first alternates;
    with one side alone there is nothing to interleave.

    Parameters
    ----------
    quality : bool
        Whether likelihoods mean anything for these weights.
    """
    for side in sides:
        side.parameter_bytes = parameter_bytes(side.model)
        side.parameters = side.model.num_parameters()
    names = " and ".join(side.name for side in sides)
    if quality:
        with _engines(sides):
            _score(sides, work)
    # Others than those that read: pages of longer windows would stay with a cache.
    with _engines(sides):
        for prompt in track(work.prompts, f"Greedy generation: {names}", len(work.prompts)):
            for side in sides:
                with side.recording():
                    side.texts.append(side.greedy(prompt, config.generation.new_tokens))
        _time(sides, work, config)
    if quality and sides[-1].stack is not None and sides[-1].stack.ngram_tokens:
        _score_segmentations(sides[-1], work, config)
    for side in sides:
        side.step_bytes = step_bytes(side.model)
        if side.stack:
            side.step_bytes += side.stack.extra_step_bytes()


def measure_caches(side: Side, candidate: Side, work: Workload) -> None:
    """Have transformers' caches hold the candidate's largest timed generation, as `side` reads it.

    Both kinds, of which the dynamic one is left out where the candidate has a cache of its own.
    Of the other side the dynamic one alone.
    """
    sizes = [timing.live_bytes for timing in candidate.timings[: len(work.prompts)]]
    largest = sizes.index(max(sizes))
    if side is not candidate:
        kinds = [CacheKind.dynamic]
    elif side.engine_stats:
        kinds = [CacheKind.static]
    else:
        kinds = [*CacheKind]
    for kind in track(kinds, f"Transformers' caches: {side.name}", len(kinds)):
        side.caches[kind] = transformers_cache(
            side.model,
            side.tokenizer,
            work.prompts[largest],
            side.timings[largest].new_tokens,
            kind,
        )


def measure_prompt_cut(baseline: Side, candidate: Side, work: Workload) -> None:
    """Have the unmodified model read what the candidate read compressed: whole, and cut.

    To be called when the candidate's stack is off the model again, which the two may share.
    """
    found, predict = candidate.compression, predicting(baseline.model)
    for window, compressed in track(
        zip(work.compression, found, strict=False), "Prompt cut: baseline", len(found)
    ):
        for scores, newest in (
            (baseline.whole, None),
            (baseline.prompt_cut, compressed.context_tokens),
        ):
            one = score(predict, baseline.base_tokenizer, window, newest=newest)
            scores.append(replace(one, log_probs=None))


@contextmanager
def _engines(sides: Sequence[Side]) -> Iterator[None]:
    with ExitStack() as running:
        for side in sides:
            running.enter_context(side.generating())
        yield


def _score(sides: Sequence[Side], work: Workload) -> None:
    names = " and ".join(side.name for side in sides)
    for window in track(work.windows, f"Quality: {names}", len(work.windows)):
        _score_window(sides, window)
    for window in track(work.canary, f"Another domain: {names}", len(work.canary)):
        for side in sides:
            side.canary.append(replace(side.score(window), log_probs=None))
    for side in sides:
        if side.changes_vocabulary:
            windows = work.windows + work.compression
            found = track(windows, f"Base tokens: {side.name}", len(windows))
            scores = [side.score_base_tokens(window) for window in found]
            side.base_scores = scores[: len(work.windows)]
            side.compression = scores[len(work.windows) :]


def _score_segmentations(side: Side, work: Workload, config: MeasureConfig) -> None:
    for window in track(work.marginal, f"Segmentations: {side.name}", len(work.marginal)):
        side.canonical.append(replace(side.score(window), log_probs=None))
        found = side.score_marginal(window, config.quality.marginal_samples, config.seed)
        side.marginal.append(found)


def _score_window(sides: Sequence[Side], window: Window) -> None:
    scores = []
    for side in sides:
        with side.recording():
            scores.append(side.score(window))
    if len(sides) == 2 and not sides[1].changes_vocabulary:
        sides[1].divergences.append(divergence(scores[0], scores[1]))
    for side, found in zip(sides, scores, strict=True):
        side.scores.append(replace(found, log_probs=None))


def _time(sides: Sequence[Side], work: Workload, config: MeasureConfig) -> None:
    rounds = config.speed.warmup + config.speed.repeats
    jobs = list(itertools.product(range(rounds), range(len(work.prompts))))
    names = " and ".join(side.name for side in sides)
    for number, index in track(jobs, f"Timing: {names}", len(jobs)):
        for side in sides if (number + index) % 2 == 0 else reversed(sides):
            timing = side.replay(work.prompts[index])
            if number >= config.speed.warmup:
                side.timings.append(timing)
