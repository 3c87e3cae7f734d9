"""What the engine asks of a method that drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Drafts(Protocol):
    """Proposes how a text may go on."""

    @property
    def context(self) -> int:
        """How many of the last tokens `propose` looks at."""

    def propose(self, ids: Sequence[int]) -> list[int]:
        """Return the likely next tokens, often none."""
