"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EngineStats:
    """What an engine did, summed over all its calls.

    Attributes
    ----------
    prefill_steps : int
        Forward passes over a chunk of a prompt.
    decode_steps : int
        Forward passes over one token of every decoding sequence.
    verify_steps : int
        Forward passes over the newest token of one sequence and a draft.
    proposed, accepted : int
        Tokens in drafts, and those among them that the sampler chose as well.
    preemptions : int
        How often a sequence lost its slot because memory was short.
    recomputed, diverged : int
        Tokens chosen a second time after a preemption, and those among them that differed from
        the first choice.
    """

    prefill_steps: int = 0
    decode_steps: int = 0
    verify_steps: int = 0
    proposed: int = 0
    accepted: int = 0
    preemptions: int = 0
    recomputed: int = 0
    diverged: int = 0
