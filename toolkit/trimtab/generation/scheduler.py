"""Who reads, who decodes and who waits: decisions only, no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of the prompt `index`; `last` where the prompt ends there."""

    index: int
    start: int
    end: int
    last: bool


class Scheduler:
    """Admits prompts in their order to a fixed number of slots, and puts the youngest back.

    A sequence waits, reads its prompt, decodes, and is finished. One sequence reads at a time, in
    chunks that depend on its prompt alone. Prompts put back wait before all that were never
    admitted, so that those admitted are always the first of what is left, and the oldest of them
    is never put back: it gets done.

    Parameters
    ----------
    prompts : sequence of int
        Tokens of each prompt, at least 1.
    slots, chunk : int
        At least 1: sequences admitted at a time, and tokens read at a time.

    Attributes
    ----------
    waiting : deque of int
        Prompts by their index, the next first.
    reading : int or None
        The prompt that is being read.
    running : list of int
        Those that decode, the oldest first.
    """

    def __init__(self, prompts: Sequence[int], slots: int, chunk: int) -> None:
        self._prompts = list(prompts)
        self._slots = slots
        self._chunk = chunk
        self._read = 0
        self._full = False
        self.waiting = deque(range(len(prompts)))
        self.reading: int | None = None
        self.running: list[int] = []

    @property
    def active(self) -> int:
        """Sequences that have a slot."""
        return len(self.running) + (self.reading is not None)

    @property
    def done(self) -> bool:
        return not self.active and not self.waiting

    def next(self) -> int | None:
        """Return the prompt that may be admitted now, if any.

        None where one is being read, no slot is free, or memory ran out since a sequence was last
        finished: until the next is, what is admitted would only be put back.
        """
        if self.reading is not None or self._full or self.active == self._slots:
            return None
        return self.waiting[0] if self.waiting else None

    def admit(self) -> None:
        """Let the next prompt be read."""
        self.reading, self._read = self.waiting.popleft(), 0

    def hold(self) -> None:
        """Admit nothing until a sequence is finished: there is no memory for it."""
        self._full = True

    def chunk(self) -> Chunk | None:
        """Return the next tokens to read, None where no prompt is being read."""
        if self.reading is None:
            return None
        size = self._prompts[self.reading]
        end = min(self._read + self._chunk, size)
        return Chunk(self.reading, self._read, end, last=end == size)

    def read(self, chunk: Chunk) -> None:
        """Note that a chunk was read; behind the last one the sequence decodes."""
        self._read = chunk.end
        if chunk.last:
            self.reading = None
            self.running.append(chunk.index)

    def put_back(self) -> int:
        """Put the youngest sequence back to the front of those that wait, and return it."""
        if self.reading is not None:
            index, self.reading = self.reading, None
        else:
            index = self.running.pop()
        self.waiting.appendleft(index)
        self.hold()
        return index

    def finish(self, index: int) -> None:
        """Note that a running sequence is finished."""
        self.running.remove(index)
        self._full = False
