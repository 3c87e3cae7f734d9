"""The configuration of AdaptiVocab, its values checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from trimtab.adaptivocab.rows import Rows
from trimtab.errors import ConfigError


class Choice(StrEnum):
    """How n-grams are chosen."""

    merging = "merging"
    paper = "paper"


class Mode(StrEnum):
    """What n-grams are used for."""

    auto = "auto"
    draft = "draft"
    full = "full"
    input = "input"


@dataclass
class Settings:
    """The configuration of AdaptiVocab.

    Parameters
    ----------
    size : int
        Most n-grams mined: a budget, of which the guard lets a part be merged.
    max_pieces : int
        Most base tokens of an n-gram.
    selection : Choice
        `merging` grows n-grams by pair merging; `paper` takes them by frequency times saving.
    rows : Rows
        How the embedding's and the head's new rows come about.
    mode : Mode
        `draft` proposes n-grams for the base model to verify and changes nothing else. `full`
        makes them tokens of prompt and output, `input` of the prompt alone. `auto` makes tokens
        of those that the guard lets through and drafts with the others.
    max_bpb_increase : float or None
        The guard: most that bits per byte of validation text may rise, relative to the base
        model; None merges all n-grams.
    mining_tokens : int
        Most base tokens of the calibration text that n-grams are counted on.
    tokens : int
        Base tokens of the calibration text that rows are fitted on.
    gate_tokens : int
        Base tokens of the validation text that the guard is measured on.
    window : int
        Base tokens read at a time.

    Raises
    ------
    ConfigError
        For a value out of range.
    """

    size: int = 2000
    max_pieces: int = 4
    selection: Choice = Choice.merging
    rows: Rows = Rows.closed
    mode: Mode = Mode.auto
    max_bpb_increase: float | None = 0.01
    mining_tokens: int = 4_000_000
    tokens: int = 32768
    gate_tokens: int = 4096
    window: int = 512

    def __post_init__(self) -> None:
        self._require(self.size >= 1, "size", "at least 1")
        self._require(self.max_pieces >= 2, "max_pieces", "at least 2")
        self._require(self.window >= 32, "window", "at least 32")
        for name in ("mining_tokens", "tokens", "gate_tokens"):
            self._require(
                getattr(self, name) >= self.window, name, f"at least {self.window}, one window"
            )
        guard = self.max_bpb_increase
        self._require(
            guard is None or 0 <= guard < math.inf,
            "max_bpb_increase",
            "a finite share of at least 0, or null to merge all",
        )

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            raise ConfigError(f"adaptivocab.{field}", getattr(self, field), f"expected {expected}")
