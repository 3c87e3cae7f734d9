"""Where labels go, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence


def spread(wanted: Sequence[float], room: Sequence[float]) -> list[float]:
    """Return places from above to below, near the wanted ones and none within another's room."""
    places: list[float] = []
    edge = 1.05
    for number, (want, size) in enumerate(zip(wanted, room, strict=True)):
        least = sum(room[number + 1 :]) + size / 2 - 0.05  # the others must fit below
        places.append(max(min(want, edge - size / 2), least))
        edge = places[-1] - size / 2
    return places
