"""What one measurement is about: the text, the settings, and the metrics that share samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trimtab.config import MeasureConfig
from trimtab.corpora import Document
from trimtab.corpus import encode, with_start
from trimtab.models.facts import require_positions

if TYPE_CHECKING:
    from trimtab.evaluation.metrics.metric import Metric

M = TypeVar("M", bound="Metric")


@dataclass
class Job:
    """What the metrics of one measurement share.

    Attributes
    ----------
    documents : sequence of Document
        Held-out text.
    tokenizer : PreTrainedTokenizerBase
        The unmodified model's. Others make fewer tokens of a text.
    model_config : PreTrainedConfig
    settings : MeasureConfig
    known_weights : bool
        False where they are random, so that no quality may be reported.
    changes_vocabulary : bool
        Whether the stack reads or writes other tokens than the unmodified model.
    paired : bool
        Whether both models are there at once.
    metrics : dict
        Those made so far, by their class.
    """

    documents: Sequence[Document]
    tokenizer: PreTrainedTokenizerBase
    model_config: PreTrainedConfig
    settings: MeasureConfig
    known_weights: bool
    changes_vocabulary: bool
    paired: bool
    metrics: dict[type[Any], Any] = field(default_factory=dict)

    def metric(self, kind: type[M]) -> M:
        """Return the metric of this class, one that another `needs`."""
        found: M = self.metrics[kind]
        return found

    def require_positions(self, texts: Iterable[Sequence[str]], setting: str) -> None:
        """Refuse texts, each in parts, that are longer than the model has positions for.

        Raises
        ------
        MisfitError
            Naming `setting`, which is what makes them long.
        """
        tokens = ([one for part in text for one in encode(self.tokenizer, part)] for text in texts)
        longest = max((len(with_start(self.tokenizer, one)) for one in tokens), default=0)
        require_positions(self.model_config, longest, setting)
