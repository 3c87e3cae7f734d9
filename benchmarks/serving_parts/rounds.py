"""Rounds in which every contender answers the same requests in turn."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from serving_parts.servers import Contender
from trimtab.evaluation.generators.server import Answer, Request
from trimtab.evaluation.metrics.metric import drawn
from trimtab.progress import track

SEED = 0


def answers(
    compared: Sequence[Contender], given: Sequence[Request], rounds: int, title: str
) -> dict[str, list[Answer]]:
    """Return the contenders' answers by their names, round by round, after one that is untimed.

    Their order is drawn in every round, so that none always runs after the same other.
    """
    found: dict[str, list[Answer]] = {one.name: [] for one in compared}
    for one in track(compared, "Warm-up", len(compared)):
        one.server.warm_up(given)
    order = Random(SEED)
    for _ in track(range(rounds), title, rounds):
        for one in drawn(order, compared):
            found[one.name].append(one.server.serve(given))
    return found
