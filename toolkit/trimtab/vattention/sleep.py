"""The live rows of a cache, saved in ordinary memory and restored as they were."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from trimtab.vattention.pages import Access
from trimtab.vattention.supply import Supply
from trimtab.vattention.table import PageRow, PageTable


@dataclass(eq=False)
class SavedRow:
    """The contents of a page row; one object for all slots that share the row.

    Attributes
    ----------
    content : Tensor
        Its live bytes, uint8 of shape ``[planes, bytes]``, in the host's memory.
    access : Access
    """

    content: Tensor
    access: Access


def save(table: PageTable, lengths: Sequence[int]) -> list[list[SavedRow]]:
    """Return copies of the rows that hold live tokens, by slot."""
    copies: dict[PageRow, SavedRow] = {}
    for slot, length in enumerate(lengths):
        end = length * table.geometry.row_bytes
        for index, row in enumerate(table.rows[slot][: table.needed(length)]):
            nbytes = min(table.page, end - index * table.page)
            # Slots that share a row may end within it; the longest has all its live bytes.
            if row not in copies or nbytes > copies[row].content.shape[1]:
                content = table.filled(slot, index, nbytes).to("cpu", copy=True)
                copies[row] = SavedRow(content, row.access)
    return [
        [copies[row] for row in rows[: table.needed(length)]]
        for rows, length in zip(table.rows, lengths, strict=True)
    ]


def restore(
    undo: ExitStack, table: PageTable, supply: Supply, saved: Sequence[Sequence[SavedRow]]
) -> None:
    """Give the slots their saved rows back, shared as they were.

    Raises
    ------
    KVOutOfMemory
        If there are not enough pages.
    """
    first: dict[SavedRow, tuple[int, int]] = {}
    for slot, parts in enumerate(saved):
        for index, part in enumerate(parts):
            first.setdefault(part, (slot, index))
    rows = supply.rows(undo, list(first.values()), [len(parts) for parts in saved])
    made = dict(zip(first, rows, strict=True))
    for slot, parts in enumerate(saved):
        for index, part in enumerate(parts):
            row = made[part]
            table.extend(undo, slot, [row])
            if first[part] == (slot, index):
                table.filled(slot, index, part.content.shape[1]).copy_(part.content)
                table.settle()
                table.allow(undo, slot, index, index + 1, part.access)
