"""vAttention as a method: generation on a virtual KV cache (arXiv 2405.04437)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.errors import ConfigError
from trimtab.method import Applied, Method, Stage
from trimtab.models.adapter import adapter_for
from trimtab.vattention.cache import CacheShape
from trimtab.vattention.layout import Layout
from trimtab_kernels.decode_attention import kernel_name


@dataclass
class VAttention(Method):
    """Keep keys and values contiguous in virtual memory, with pages behind what is used of them.

    The engine of `trimtab.generation` generates then, instead of transformers.

    Parameters
    ----------
    layout : Layout
        What is contiguous: `slot`, the tokens of one layer; `mega`, those of all layers.
    page_group : int or None
        Bytes of a page; None for 64 KB on the host and the driver's 2 MB on a GPU.
    budget : int or None
        The most bytes of pages; no limit where None.
    prefill_chunk : int
        Prompt tokens read in one forward pass.

    Raises
    ------
    ConfigError
        For a value out of range.
    """

    name: ClassVar[str] = "vattention"
    stage: ClassVar[Stage] = Stage.cache
    calibrated: ClassVar[bool] = False

    layout: Layout = Layout.slot
    page_group: int | None = None
    budget: int | None = None
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        for field in ("page_group", "budget", "prefill_chunk"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"vattention.{field}", value, "expected at least 1")

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` where the model has no adapter, or keeps other than keys and values.

        What an engine cannot do with a model beyond that, it says when it is made.
        """
        adapter_for(model)
        CacheShape.of(model.config)

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifact: Artifact | None,
    ) -> Iterator[Applied]:
        """Leave the model as it is, and say what the engine is to generate with."""
        yield Applied(
            tokenizer,
            kernel=f"decode attention: {kernel_name(model.device.type, model.dtype)}",
            engine=self.config(),
        )
