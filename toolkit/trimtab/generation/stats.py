"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        Those among them, of one sequence or of several, that verified a draft as well.
    proposed, accepted : int
        Tokens in drafts, and those among them that the sampler chose as well.
    proposed_by_position, accepted_by_position : list of int
        The same for the first token of a draft, the second, and so on.
    step_costs : list of float or None
        The time of a step over 1, 2, ... tokens, over that of a step over one, by which the length
        of drafts is chosen; None without a drafter.
    step_costs_measured : str or None
        When they were measured on this machine, in UTC and ISO 8601: at most a day before.
    step_costs_seconds : float or None
        What measuring them took, then.
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
    proposed_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    step_costs: list[float] | None = None
    step_costs_measured: str | None = None
    step_costs_seconds: float | None = None
    preemptions: int = 0
    recomputed: int = 0
    diverged: int = 0

    def verified(self, drafted: int, accepted: int) -> None:
        """Count a draft of so many tokens, and those of its beginning that were chosen."""
        self.proposed += drafted
        self.accepted += accepted
        for counts, tokens in (
            (self.proposed_by_position, drafted),
            (self.accepted_by_position, accepted),
        ):
            counts += [0] * (drafted - len(counts))
            for position in range(tokens):
                counts[position] += 1
