"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EngineStats:
    """What an engine did, over all its calls.

    Attributes
    ----------
    chunks : int
        Forward passes over tokens of a prompt.
    decode_steps : int
        Forward passes over one token of every sequence that decoded.
    drafted_steps : int
        Forward passes over one sequence's newest token and a draft.
    proposed, accepted : int
        Draft tokens, and those of them that the sampler chose too.
    preemptions : int
        How often a sequence was put back for want of memory.
    replayed, diverged : int
        Tokens chosen once more after that, and those of them that would have been others now.
    """

    chunks: int = 0
    decode_steps: int = 0
    drafted_steps: int = 0
    proposed: int = 0
    accepted: int = 0
    preemptions: int = 0
    replayed: int = 0
    diverged: int = 0
