"""Rounds in which every contender answers the same requests in turn."""

from __future__ import annotations

from collections.abc import Sequence

from serving_parts.servers import Contender
from trimtab.evaluation.generators.server import Answer, Request
from trimtab.progress import track


def answers(
    compared: Sequence[Contender], given: Sequence[Request], rounds: int, title: str
) -> dict[str, list[Answer]]:
    """Return the contenders' answers by their names, round by round, after one that is untimed.

    Who is first changes from round to round.
    """
    found: dict[str, list[Answer]] = {one.name: [] for one in compared}
    for one in track(compared, "Warm-up", len(compared)):
        one.server.warm_up(given)
    for number in track(range(rounds), title, rounds):
        for place in range(len(compared)):
            one = compared[(number + place) % len(compared)]
            found[one.name].append(one.server.serve(given))
    return found
