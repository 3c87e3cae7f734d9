"""How fast memory is read: part after part, all of it in turn."""

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
