"""The settings of the virtual KV cache."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from trimtab.settings import Settings, setting, settings


class Layout(StrEnum):
    """What is contiguous in the virtual KV cache.

    In `slot`, the keys or the values of a sequence in one layer. In `mega`, those of all layers,
    token by token: this takes fewer pages, and wastes less of them, but the tokens of a layer lie
    further apart.
    """

    slot = "slot"
    mega = "mega"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"layout={value!r}; expected {' or '.join(cls)}")


@settings
class CacheSettings(Settings):
    """How the generation engine keeps keys and values, and prefills prompts."""

    place: ClassVar[str] = "vattention"

    layout: Layout | None = setting(
        default=None,
        meaning="what is contiguous: slot, the tokens of one layer; mega, those of all layers "
        "together; null: slot on the host, and mega on a GPU, whose pages are larger",
    )
    page_group: int | None = setting(
        default=None,
        meaning="size of a page, a multiple of 4096 on the host, in huge pages if one of 2097152; "
        "null: 65536 there, and the driver's 2 MB on a GPU",
        at_least=1,
        unit="bytes",
    )
    budget: int | None = setting(
        default=None,
        meaning="the most that all pages together may take, at least one page; null: no limit",
        at_least=1,
        unit="bytes",
    )
    prefill_chunk: int = setting(
        default=512,
        meaning="the most prompt tokens in one forward pass",
        at_least=1,
        unit="tokens",
    )
    batch_invariant: bool = setting(
        default=False,
        meaning="prefill every prompt in a pass of its own, decode on a GPU in steps of as many "
        "rows each, and draft only where that changes no rounding, so that a text does not depend "
        "on those beside it, not even in the last bits of its logits",
    )
