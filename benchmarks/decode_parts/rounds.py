"""Rounds in which every contender continues a prompt in turn, and what they amount to."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from decode_parts.contenders import Contender
from decode_parts.continuation import Continuation
from decode_parts.machine import pages
from trimtab.evaluation.bandwidth import Reader
from trimtab.evaluation.intervals import ratio
from trimtab.evaluation.metrics.metric import drawn
from trimtab.evaluation.work import milliseconds
from trimtab.progress import track

Row = dict[str, Any]


def measure(
    contenders: Sequence[Contender], prompts: Sequence[list[int]], rounds: int, seed: int
) -> Row:
    """Return a row a contender; the first is what the others are compared with.

    A round reads memory, and then has every contender continue the same prompt, in an order that
    is drawn. Before, every contender continues every prompt once, and counts what it reads.
    """
    read, order = Reader(torch.device("cpu")), Random(seed)
    for one in track(contenders, "Warm-up", len(contenders)):
        with one.recording():
            for prompt in prompts:
                one.run(prompt)
    rates: list[float] = []
    found: dict[str, list[Continuation]] = {one.name: [] for one in contenders}
    for number in track(range(rounds), "Rounds", rounds):
        read()  # what the last contender left in the caches is out of the way
        rates.append(read())
        for one in drawn(order, contenders):
            found[one.name].append(one.run(prompts[number % len(prompts)]))
    reference, context = found[contenders[0].name], len(prompts[0])
    rows = [_row(one, found[one.name], reference, rates, context, seed) for one in contenders]
    for one, row in zip(contenders, rows, strict=True):
        row["exact_logits"] = one.exact_logits()
    reading = {"bytes_per_s": rates, "huge_share": read.huge_share}
    del read  # its pages are not the contenders'
    return {"read": reading, "pages": pages(), "rows": rows}


def _row(
    one: Contender,
    own: list[Continuation],
    reference: list[Continuation],
    rates: list[float],
    context: int,
    seed: int,
) -> Row:
    def paired(numerator: list[float], denominator: list[float]) -> dict[str, float]:
        return ratio(numerator, denominator, paired=True, seed=seed)

    weights = one.weight_bytes()
    # Step by step the context grows from the prompt's tokens to those before the last.
    each = [weights + one.token_bytes * (context + (part.tokens + 1) / 2) for part in own]
    floors = [
        1e3 * size * part.steps / rate for size, part, rate in zip(each, own, rates, strict=True)
    ]
    times, tokens = [part.milliseconds for part in own], [float(part.tokens) for part in own]
    per_byte: dict[str, Any] = {"ms_per_byte": None, "speedup_per_byte": None}
    if all(part.size for part in own + reference):  # random weights may write nothing but controls
        mine, theirs = (
            [part.milliseconds / part.size for part in side] for side in (own, reference)
        )
        per_byte["ms_per_byte"] = paired(times, [part.size for part in own])
        per_byte["speedup_per_byte"] = paired(theirs, mine)
    return {
        "contender": one.name,
        "note": one.note,
        "ms_per_token": paired(times, tokens),
        "tokens_per_s": 1e3 * sum(tokens) / sum(times),
        "tokens_per_step": sum(tokens) / sum(part.steps for part in own),
        "speedup": paired([part.milliseconds for part in reference], times),
        **per_byte,
        "weight_bytes": weights,
        "step_bytes": round(sum(each) / len(each)),
        "floor_ms_per_token": sum(floors) / sum(tokens),
        "floor_share": paired(floors, times),
        "work_ms_per_step": milliseconds(
            [part.work for part in own], sum(times) / 1e3, sum(part.steps for part in own)
        ),
        "same_text": sum(a.text == b.text for a, b in zip(own, reference, strict=True)) / len(own),
        "samples": [part.sample() for part in own],
    }
