"""The configuration of AdaptiVocab."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from trimtab.settings import Settings, setting, settings


class NGramSelection(StrEnum):
    """How n-grams are chosen."""

    merging = "merging"
    paper = "paper"


class Rows(StrEnum):
    """Where new rows of the embedding and of the head come from."""

    fitted = "fitted"
    distilled = "distilled"
    recovered = "recovered"
    exponential = "exponential"
    mean = "mean"
    first = "first"
    last = "last"


class Mode(StrEnum):
    """What the calibration text is used for."""

    auto = "auto"
    draft = "draft"
    full = "full"
    input = "input"


@settings
class AdaptiVocabSettings(Settings):
    """The configuration of AdaptiVocab."""

    place: ClassVar[str] = "adaptivocab"

    size: int = setting(default=2000, meaning="most n-grams mined", at_least=1, unit="n-grams")
    max_ngram: int = setting(
        default=4, meaning="most base tokens of an n-gram", at_least=2, unit="tokens"
    )
    selection: NGramSelection = setting(
        default=NGramSelection.merging,
        meaning="how n-grams are chosen: merging, by repeatedly merging the most frequent pair; "
        "paper, by frequency times saving",
    )
    rows: Rows = setting(
        default=Rows.fitted,
        meaning="new rows of embedding and head: fitted (input rows by gradient to the model's "
        "hidden states, head rows by L-BFGS to its probabilities); distilled (all of them by "
        "gradient to its outputs, after that); recovered (input rows by split and recover); or a "
        "weighted mean of the tokens' rows, exponential being the paper's",
    )
    mode: Mode = setting(
        default=Mode.auto,
        meaning="draft proposes what followed the same context, in the calibration text or in the "
        "running text, for the unchanged model to verify, lossless; full makes n-grams tokens of "
        "prompt and output, input of the prompt alone; auto makes tokens of those within the "
        "quality budget, and drafts",
    )
    max_bpb_increase: float | None = setting(
        default=0.01,
        meaning="the quality budget: most that bits per byte of validation text may rise, "
        "relative to the unmodified model (0.01 is 1 %); null merges all n-grams",
        at_least=0,
    )
    mining_tokens: int = setting(
        default=4_000_000,
        meaning="most calibration tokens that n-grams and drafts are counted on (at least one "
        "window)",
        unit="tokens",
    )
    tokens: int = setting(
        default=32768,
        meaning="calibration tokens that rows are fitted on (at least one window)",
        unit="tokens",
    )
    validation_tokens: int = setting(
        default=4096,
        meaning="validation tokens used to check the quality budget; as many calibration tokens "
        "fit the rows of each operating point (at least one window)",
        unit="tokens",
    )
    window: int = setting(
        default=512, meaning="tokens that the model reads at a time", at_least=32, unit="tokens"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mining_tokens", "tokens", "validation_tokens"):
            enough = getattr(self, name) >= self.window
            self.require(enough, name, f"at least {self.window}, one window")
