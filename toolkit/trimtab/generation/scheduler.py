"""Which sequence prefills, which decode and which wait: decisions only, no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of the prompt `index`; `last` if the prompt ends there."""

    index: int
    start: int
    end: int
    last: bool


class Scheduler:
    """Admits prompts in order to a fixed number of slots, and preempts the youngest sequence.

    A sequence waits, prefills, decodes, and finishes. One sequence prefills at a time, in chunks
    whose bounds depend on its prompt alone. Preempted sequences wait ahead of those that have never
    been admitted. Hence the admitted sequences are always the first ones left, and the oldest of
    them is never preempted: it always finishes.

    Parameters
    ----------
    prompts : sequence of int
        Tokens of each prompt, at least 1.
    slots : int
        The most sequences admitted at a time, at least 1.
    chunk : int
        The most tokens in a chunk, at least 1.

    Attributes
    ----------
    waiting : deque of int
        Indices of the waiting prompts, the next one first.
    prefilling : int or None
        Index of the prompt being prefilled.
    running : list of int
        Indices of the decoding sequences, the oldest first.
    """

    def __init__(self, prompts: Sequence[int], slots: int, chunk: int) -> None:
        self._prompts = list(prompts)
        self._slots = slots
        self._chunk = chunk
        self._done = 0  # tokens of the prompt being prefilled
        self._full = False
        self.waiting = deque(range(len(prompts)))
        self.prefilling: int | None = None
        self.running: list[int] = []

    @property
    def active(self) -> int:
        """How many sequences have a slot."""
        return len(self.running) + (self.prefilling is not None)

    @property
    def done(self) -> bool:
        return not self.active and not self.waiting

    def next(self) -> int | None:
        """Return the prompt that may be admitted now, if any.

        There is none while another prefills, while no slot is free, and after memory ran out until
        a sequence finishes: anything admitted before then would only be preempted.
        """
        if self.prefilling is not None or self._full or self.active == self._slots:
            return None
        return self.waiting[0] if self.waiting else None

    def admit(self) -> None:
        """Start to prefill the next prompt."""
        self.prefilling, self._done = self.waiting.popleft(), 0

    def hold(self) -> None:
        """Admit nothing until a sequence finishes, because memory is short."""
        self._full = True

    def chunk(self) -> Chunk | None:
        """Return the next chunk to prefill; None if no prompt is being prefilled."""
        if self.prefilling is None:
            return None
        size = self._prompts[self.prefilling]
        end = min(self._done + self._chunk, size)
        return Chunk(self.prefilling, self._done, end, last=end == size)

    def prefilled(self, chunk: Chunk) -> None:
        """Note that a chunk is done; after the last one its sequence decodes."""
        self._done = chunk.end
        if chunk.last:
            self.prefilling = None
            self.running.append(chunk.index)

    def preempt(self) -> int:
        """Move the youngest sequence to the front of the waiting ones, and return its index."""
        if self.prefilling is not None:
            index, self.prefilling = self.prefilling, None
        else:
            index = self.running.pop()
        self.waiting.appendleft(index)
        self.hold()
        return index

    def finish(self, index: int) -> None:
        """Note that a running sequence is finished."""
        self.running.remove(index)
        self._full = False
