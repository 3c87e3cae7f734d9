"""What a stack gains and what it costs, in sentences; nothing where nothing was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.evaluation.intervals import Estimate
from trimtab.progress import duration
from trimtab.report.drafts import condition
from trimtab.report.figures import code, interval, listed, number
from trimtab.report.job import Job
from trimtab.report.rules import SAME, same_text
from trimtab.report.verdict import (
    ALIKE,
    FASTER,
    NOISY,
    SLOWER,
    few_rounds,
    first_token,
    serves,
    serves_continuously,
    verdict,
)

IN_ALL = "weights, copy of the head, KV cache"
NOTICED = 0.005  # smaller shares are not worth a sentence
UNPAIRED = " (unpaired: the two were timed one after another)"


@dataclass(frozen=True)
class Balance:
    """One stack in words.

    Attributes
    ----------
    gained, cost, alike, unknown : tuple of str
        What got better, what got worse, what did neither, and what the noise hides.
    """

    gained: tuple[str, ...]
    cost: tuple[str, ...]
    alike: tuple[str, ...]
    unknown: tuple[str, ...]


def balance(job: Job, rows: Sequence[Job]) -> Balance:
    """Weigh what was measured of a stack against the unmodified model."""
    found = [item for say in SAYINGS for item in say(job, rows)]
    return Balance(
        *(tuple(text for kind, text in found if kind == sign) for sign in (1, -1, 0, None))
    )


Item = tuple[int | None, str]  # 1 gained, -1 cost, 0 neither, None not known; and the words
SIGNS = {FASTER: 1, SLOWER: -1, ALIKE: 0, NOISY: None}


def _speed(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    times = job.get("speed.ms_per_byte")
    if times is None:
        return
    told = interval(job.get("speed.speedup"), ".2f")
    unpaired = UNPAIRED if job.get("speed.paired") is False else ""
    ours, theirs = (times[name]["estimate"] for name in ("candidate", "baseline"))
    amounts = f": {ours:.2f} ms per byte of text instead of {theirs:.2f}"
    holds = f"; {drafted}" if (drafted := condition(job, rows)) else ""
    found = verdict(job, rows)
    if found == FASTER:
        yield 1, f"{told} times as fast{amounts}{unpaired}{holds}"
    elif found == SLOWER:
        yield -1, f"slower, {told} times the speed{amounts}{unpaired}"
    else:
        yield (
            SIGNS[found],
            f"speed: {found}, {told} times{unpaired}{_beside(job, 'speed.control', found)}",
        )
    prefill, first = first_token(job), job.get("speed.ttft_ms")
    if prefill in (FASTER, SLOWER):
        sign, word = (1, "sooner") if prefill == FASTER else (-1, "later")
        yield (
            sign,
            f"the first token comes {word}, after {_short(first['candidate']['estimate'])} ms "
            f"instead of {_short(first['baseline']['estimate'])} ms",
        )
    elif prefill == NOISY:
        yield (
            None,
            f"the first token: {interval(job.get('speed.prefill_speedup'), '.2f')} times as fast"
            + _beside(job, "speed.prefill_control", prefill),
        )


def _beside(job: Job, control: str, found: str) -> str:
    """Return the control that a figure is not clear of."""
    noise = job.get(control)
    if found not in (NOISY, ALIKE) or noise is None:
        return ""
    return f"; its control: {interval(noise, '.2f')}"


def _short(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _quality(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    change = job.get("derived.bits_increase")
    if change is None:
        return
    if same_text(job):
        yield (
            0,
            "the greedy texts are the same as the unmodified model's, and the bits per byte differ "
            f"by less than {SAME:.1%}",
        )
    else:
        told = f"{interval(change, '+.1%')} bits per byte"
        sign = -(_side(change, "+.1%") or 0)
        yield sign, told if sign else f"no difference in quality found: {told}"
        yield from _text(job)
    for task, found in (job.get("quality.tasks") or {}).items():
        yield _task(task, found)


def _side(change: Estimate, form: str, none: float = 0.0) -> int | None:
    """Return 1 where a change is above none, -1 below, 0 where both ends are written as none.

    None where its interval holds none and is wider.
    """
    if {number(change["low"], form), number(change["high"], form)} == {number(none, form)}:
        return 0
    return 1 if change["low"] > none else -1 if change["high"] < none else None


def _task(task: str, found: Mapping[str, Any]) -> Item:
    difference, better = found["difference"], found.get("higher_is_better")
    amount = f"{interval(difference, '+.3f')} {found['metric']}"
    side = _side(difference, "+.3f")
    if not side:
        return 0, f"{task}: no difference found, {amount}"
    told = f"{task}: {amount}"
    if better is None:
        return None, f"{told}, and the task does not say whether more is better"
    sign = side if better else -side
    return sign, told if better else f"{told} (less is better)"


def _text(job: Job) -> Iterator[Item]:
    share = job.get("quality.greedy_agreement")
    if job.get("quality.exact_match.estimate") == 1:
        yield 0, "the greedy texts are the same as the unmodified model's"
    elif share is not None:
        same = interval(share, ".1%")
        yield -1, f"greedy texts differ: on average, the first {same} of a text is the same"


def _tokens(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    for field, what in (("tokens.saving", "tokens"), ("tokens.steps.saving", "forward passes")):
        saving = job.get(field) or 0.0
        if abs(saving) >= NOTICED:
            sign, word = (1, "fewer") if saving > 0 else (-1, "more")
            yield sign, f"{abs(saving):.1%} {word} {what} for the same text"


def _energy(job: Job) -> Iterator[Item]:
    ratio = job.get("energy.ratio")
    if ratio is not None:
        side = _side(ratio, ".2f", 1.0)
        yield (
            side and -side,
            f"energy per byte of text: {interval(ratio, '.2f')} times the unmodified model's",
        )


def _memory(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    one_text = {"baseline": job.get("kv.dynamic_bytes"), "candidate": job.get("kv.committed_bytes")}
    for held, what in (
        (one_text, "memory for the KV cache of one text"),
        (job.get("derived.serving_kv_bytes"), "KV memory while serving than padded batches hold"),
        (job.get("memory.parameter_bytes"), "memory for the weights"),
        (job.get("derived.one_text_bytes"), f"memory in all for one text ({IN_ALL})"),
        (job.get("derived.serving_bytes"), f"memory in all while serving ({IN_ALL})"),
    ):
        if held and held["baseline"] and held["candidate"] is not None:
            share = held["candidate"] / held["baseline"] - 1
            ours, theirs = (_short(held[name] * 1e-6) for name in ("candidate", "baseline"))
            amounts = f"{what}: {ours} MB instead of {theirs}"
            if abs(share) >= NOTICED:
                sign, word = (-1, "more") if share > 0 else (1, "less")
                yield sign, f"{abs(share):.0%} {word} {amounts}"
    weights, copy = job.get("memory.parameter_bytes"), job.get("engine.head_copy_bytes")
    if weights and copy:
        share = copy / weights["baseline"]
        yield -1, f"an int8 copy of the head adds {share:.0%} to the memory of the weights"
    yield from _energy(job)
    more = (job.get("sparsity.bytes_read_fraction") or 1.0) - 1
    if more <= -NOTICED:
        yield 1, f"{-more:.1%} of the block weights' bytes are not read when a token is decoded"
    elif more >= NOTICED:
        yield -1, f"{more:.1%} more bytes than those of the block weights are read for a token"


def _serving(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    few = few_rounds(job)
    for field, found, other in (
        ("serving.speedup", serves(job), "padded generate"),
        ("serving.speedup_continuous", serves_continuously(job), "continuous batching"),
    ):
        speedup = job.get(field)
        if speedup is not None:
            told = interval(speedup, ".2f")
            yield (
                SIGNS[found],
                f"serving: {told} times the requests per second of {other}"
                + _beside(job, "serving.control", found)
                + (f"; {few}" if found == NOISY and few else ""),
            )


def _compression(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    found = job.get("quality.compression")
    if found is None:
        return
    tokens, bits = found["tokens"], found["bits_per_byte"]
    if tokens["candidate"] >= tokens["baseline"]:
        told = f"{tokens['candidate']} tokens instead of {tokens['baseline']}"
        yield 0, f"its prompts are no shorter: {told}"
        return
    beats = found["beats_control"]
    yield (
        1 if beats else -1,
        f"its shorter prompts **{'beat' if beats else 'do not beat'} a prompt that was cut**: "
        f"of {tokens['baseline']} prompt tokens it saves "
        f"{1 - tokens['candidate'] / tokens['baseline']:.1%}, and the text after them needs "
        f"{bits['candidate']:.3f} bits per byte, {bits['prompt_cut']:.3f} after a cut prompt "
        f"(difference {interval(bits['difference'], '+.4f')}) and {bits['baseline']:.3f} after "
        "the whole one",
    )


def _calibration(job: Job, rows: Sequence[Job]) -> Iterator[Item]:
    taken: Mapping[str, Mapping[str, Any]] = job.get("calibration") or {}
    told = [
        f"{duration(one['wall_seconds'])} for {name}"
        for name, one in taken.items()
        if "wall_seconds" in one
    ]
    if told:
        yield -1, f"calibration, once: {listed(told)}"


SAYINGS: tuple[Callable[[Job, Sequence[Job]], Iterator[Item]], ...] = (
    _speed, _quality, _tokens, _memory, _serving, _compression, _calibration,
)  # fmt: skip


def control_told(job: Job) -> str:
    """Return what the unmodified model against its own copy says of the measurement."""
    speedup = job.get("speed.speedup")
    if speedup is None:
        return f"{code(job.label)} is the unmodified model; its speed was not measured."
    one_copy = job.get("speed.paired") is False
    other, place = (
        ("itself", "") if one_copy else ("its own copy", ", and where the two lie in memory")
    )
    holds = speedup["low"] <= 1 <= speedup["high"]
    return (
        f"{code(job.label)} is the unmodified model against {other}, speedup {interval(speedup)}. "
        + (f"That is the noise of its measurement{place}; every other job has a control of its "
           "own, which is of the noise alone."
           if holds else
           "It should contain 1 and does not: differences as small as this mean nothing here. "
           "Measure it again on a quiet machine.")
    )  # fmt: skip
