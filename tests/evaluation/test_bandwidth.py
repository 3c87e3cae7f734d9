"""How fast memory is read: part after part, all of it in turn."""

from __future__ import annotations

import time

import pytest
import torch

from trimtab.evaluation import bandwidth


def test_every_call_reads_the_next_part_and_returns_its_rate(monkeypatch):
    monkeypatch.setattr(bandwidth, "READ_BYTES", 2**20)
    reader = bandwidth.Reader(torch.device("cpu"), parts=4)
    read: list[int] = []
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: 0.5 * next(clock))
    summed = torch.Tensor.sum
    monkeypatch.setattr(
        torch.Tensor, "sum", lambda part: read.append(part.data_ptr()) or summed(part)
    )
    rates = [reader() for _ in range(5)]
    assert rates == [pytest.approx(2**18 / 0.5)] * 5
    assert [place - read[0] for place in read] == [0, 2**18, 2**19, 3 * 2**18, 0]


def test_a_device_is_read_several_times_by_its_own_clock(monkeypatch):
    """After a pass that nothing times: the clock stands still while the host submits."""
    numbers = torch.ones(2**10)
    passes, summed = [0], torch.Tensor.sum
    known: dict[int, bool] = {}

    def counted(part: torch.Tensor) -> torch.Tensor:
        assert part is numbers
        passes[0] += 1
        return summed(part)

    class Event:
        """Knows its time, three milliseconds a pass, once somebody has waited for it."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.after = passes[0]

        def synchronize(self) -> None:
            known[self.after] = True

        def elapsed_time(self, later: Event) -> float:
            assert known[later.after]
            return 3.0 * (later.after - self.after)

    monkeypatch.setattr(torch.Tensor, "sum", counted)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert bandwidth.rate_by_events(numbers) == pytest.approx(2**12 / 3e-3)
    assert passes[0] == bandwidth.PASSES + 1 > 2
