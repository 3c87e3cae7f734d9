"""What a cache holds, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.vattention.table import PageRow, PageTable


@dataclass(frozen=True)
class KVStats:
    """Bytes of a cache, by what they are for. Asleep it holds none but addresses.

    ``committed == live + wasted`` and ``cached <= wasted``: the rest of the waste is the ends of
    last pages.

    Attributes
    ----------
    live : int
        Keys and values of the tokens below the slots' lengths; in a page that several slots
        share, each byte once.
    committed : int
        Physical pages, each once: those behind slots, and those prepared ahead.
    mapped : int
        Addresses with a page behind them; a shared page counts in every slot.
    reserved : int
        Addresses of the whole cache.
    shared_saving : int
        Pages that live tokens would need beyond `committed` if no page stood behind two slots.
    cached : int
        Pages that no live token is in: of released slots, beyond lengths, prepared ahead. They
        are given up before memory is refused to this cache, and by `trim`.
    wasted : int
        Committed bytes that hold no live token.
    measured : int
        Physical bytes as the operating system or the driver counts them, of the whole pool where
        several caches share one.
    handles : int
        Physical pages, in number.
    peak_committed : int
        The most that `committed` was after a growth, or is now.
    growths : int
        How often pages were put behind slots.
    """

    live: int
    committed: int
    mapped: int
    reserved: int
    shared_saving: int
    cached: int
    wasted: int
    measured: int
    handles: int
    peak_committed: int
    growths: int


def count(
    table: PageTable, lengths: Sequence[int], prepared: int, *, peak: int, growths: int
) -> KVStats:
    """Return what stands behind slots of these lengths, with so many rows prepared beside it."""
    geometry, page = table.geometry, table.page
    filled: dict[PageRow, int] = {}
    uses = 0
    for rows, length in zip(table.rows, lengths, strict=True):
        end = length * geometry.row_bytes
        for index, row in enumerate(rows[: table.needed(length)]):
            filled[row] = max(filled.get(row, 0), min(page, end - index * page))
            uses += 1
    live = sum(filled.values()) * geometry.planes
    committed = (len(table.all) + prepared) * table.row_bytes
    return KVStats(
        live=live,
        committed=committed,
        mapped=sum(map(len, table.rows)) * table.row_bytes,
        reserved=table.reservation.nbytes,
        shared_saving=(uses - len(filled)) * table.row_bytes,
        cached=committed - len(filled) * table.row_bytes,
        wasted=committed - live,
        measured=table.pool.stats().measured,
        handles=committed // page,
        peak_committed=max(peak, committed),
        growths=growths,
    )
