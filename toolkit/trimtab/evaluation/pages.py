"""The pages that the KV cache of a contender's engine is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.evaluation.contenders import Contender
from trimtab.models.adapter import adapter_for, module_device
from trimtab.models.facts import CacheShape
from trimtab.vattention.layout import Geometry, committed_bytes
from trimtab.vattention.settings import CacheSettings
from trimtab.vattention.storage import make_pool


@dataclass(frozen=True)
class Pages:
    """Pages of a cache.

    Attributes
    ----------
    size : int
        Bytes of a page.
    geometry : Geometry
    """

    size: int
    geometry: Geometry

    @classmethod
    def of(cls, one: Contender, max_len: int) -> Pages:
        """Return those of an engine for texts of so many tokens.

        Raises
        ------
        MisfitError
            If the model has no cache of that kind.
        TrimtabError
            If the device has no virtual memory management.
        """
        cache = one.stack.cache or CacheSettings()
        shape = CacheShape.of(one.model.config)
        sizes = len(shape.windows), 1, max_len, shape.kv_heads, shape.head_dim
        device = module_device(adapter_for(one.model).decoder_layers(one.model)[0])
        with make_pool(device, cache.page_group, None) as pool:
            layout = pool.layout(cache.layout)
            return cls(pool.page_bytes, Geometry(*sizes, one.model.dtype, layout))

    @property
    def row(self) -> int:
        """The bytes that a text's part of the cache grows by."""
        return self.size * self.geometry.planes

    @property
    def tokens(self) -> int:
        """How many tokens that is."""
        return self.size // self.geometry.row_bytes

    def needed(self, lengths: Sequence[int]) -> int:
        """Return the bytes for texts of these lengths."""
        return committed_bytes(lengths, self.geometry, self.size)
