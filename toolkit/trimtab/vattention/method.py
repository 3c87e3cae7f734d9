"""vAttention as a method: generation on a virtual KV cache (arXiv 2405.04437)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from trimtab.method import KV_CACHE, Method, Stage
from trimtab.settings import settings
from trimtab.vattention.settings import CacheSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.artifact import Artifact


@dataclass(frozen=True)
class AppliedVAttention:
    """vAttention at work: it provides a cache, and its kernel runs."""

    cache: CacheSettings
    kernel: str


@settings
class VAttention(CacheSettings, Method):
    """Keep keys and values contiguous in virtual memory, with pages where it is used.

    The engine of `trimtab.generation` generates then, instead of transformers.
    """

    name: ClassVar[str] = "vattention"
    stage: ClassVar[Stage] = Stage.cache
    calibrated: ClassVar[bool] = False

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the model has no adapter, or keeps other than keys and values.

        What an engine cannot do with a model beyond that, it says when it is made.
        """
        from trimtab.models.adapter import adapter_for
        from trimtab.models.facts import CacheShape

        adapter_for(model)
        CacheShape.of(model.config)

    def claims(self, model: PreTrainedModel) -> frozenset[str]:
        """Return the KV cache."""
        return frozenset({KV_CACHE})

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[AppliedVAttention]:
        """Leave the model as it is, and say what the engine is to generate with."""
        from trimtab_kernels.decode_attention import kernel_name

        yield AppliedVAttention(
            CacheSettings(**{one.name: getattr(self, one.name) for one in fields(CacheSettings)}),
            f"decode attention: {kernel_name(model.device.type, model.dtype)}",
        )
