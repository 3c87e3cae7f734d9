"""What a cache holds, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.vattention.table import PageRow, PageTable


@dataclass(frozen=True)
class KVStats:
    """What a cache holds, in bytes unless stated otherwise. While it sleeps, only addresses.

    ``committed == live + wasted`` and ``cached <= wasted``; the rest of the waste is in pages that
    are only partly filled.

    Attributes
    ----------
    live : int
        Keys and values of the tokens below the slots' lengths. In a page that several slots share,
        each byte counts once.
    committed : int
        Physical pages, each counted once: those of slots, and those prepared ahead.
    mapped : int
        Addresses backed by pages, those prepared ahead too; a shared page counts in every slot.
    reserved : int
        Addresses of the whole cache.
    shared_saving : int
        Pages that the live tokens would need in addition to `committed` if none were shared.
    cached : int
        Pages without a live token: of released slots, beyond lengths, prepared ahead. They are
        given up before memory is refused to this cache, and by `trim`.
    wasted : int
        Committed bytes that hold no live token.
    measured : int
        Physical memory as counted by the operating system or the driver: of the whole pool, if
        several caches share it.
    handles : int
        Number of physical pages.
    peak_committed : int
        The largest `committed` after any growth, and now.
    growths : int
        How often slots were given pages.
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
    """Return the statistics of a cache.

    Parameters
    ----------
    table : PageTable
    lengths : sequence of int
        Tokens by slot.
    prepared : int
        Rows that were prepared ahead.
    peak : int
        The largest `committed` after any growth, in bytes.
    growths : int
    """
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
        mapped=(sum(map(len, table.rows)) + prepared) * table.row_bytes,
        reserved=table.reservation.nbytes,
        shared_saving=(uses - len(filled)) * table.row_bytes,
        cached=committed - len(filled) * table.row_bytes,
        wasted=committed - live,
        measured=table.pool.stats().measured,
        handles=committed // page,
        peak_committed=max(peak, committed),
        growths=growths,
    )
