"""Which slots of a cache are in use, and how many tokens each of them has."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch


class Slots:
    """The lengths of slots: on the host for allocation, on the device for kernels.

    Parameters
    ----------
    count : int
        Number of slots.
    max_len : int
        The most tokens of a slot.
    device : torch.device

    Attributes
    ----------
    device_lengths : Tensor
        int32 of shape ``[count]``, updated in place.
    lengths : list of int
        The same on the host.
    free : set of int
        The slots that are not in use.
    """

    def __init__(self, count: int, max_len: int, device: torch.device) -> None:
        self._max_len = max_len
        self.lengths = [0] * count
        self.free = set(range(count))
        # Not an inference tensor; see `Storage`.
        with torch.inference_mode(False):
            self.device_lengths = torch.zeros(count, dtype=torch.int32, device=device)

    def check(self, slot: int) -> int:
        """Return the length of a slot, or raise `ValueError` if it is not in use."""
        if slot not in range(len(self.lengths)) or slot in self.free:
            used = [slot for slot in range(len(self.lengths)) if slot not in self.free]
            raise ValueError(f"slot {slot!r} is not in use, {used} are; acquire it first")
        return self.lengths[slot]

    def longer(self, slot: int, length: int) -> int:
        """Return a length to which a slot may grow, or raise `ValueError` or `TypeError`."""
        present, length = self.check(slot), _integer(slot, length)
        if not 0 <= length <= self._max_len:
            raise ValueError(f"length {length} of slot {slot}; expected 0 to {self._max_len}")
        if length < present:
            raise ValueError(
                f"length {length} of slot {slot}, which has {present} tokens; use truncate to "
                "shorten it"
            )
        return length

    def shorter(self, slot: int, length: int) -> int:
        """Return a length to which a slot may shrink, or raise `ValueError` or `TypeError`."""
        present, length = self.check(slot), _integer(slot, length)
        if not 0 <= length <= present:
            raise ValueError(
                f"length {length} of slot {slot}; expected 0 to {present}, the tokens it has"
            )
        return length

    def publish(self, lengths: Mapping[int, int]) -> None:
        """Change the lengths of some slots; on the device, in the order of its work."""
        changed = [lengths.get(slot, length) for slot, length in enumerate(self.lengths)]
        # The copy from pageable memory has been read when this returns, without waiting for the
        # device.
        values = torch.tensor(changed, dtype=torch.int32, device="cpu")
        self.device_lengths.copy_(values, non_blocking=True)
        self.lengths = changed


def _integer(slot: int, length: int) -> int:
    try:
        return operator.index(length)
    except TypeError:
        raise TypeError(f"length {length!r} of slot {slot}; expected an integer") from None
