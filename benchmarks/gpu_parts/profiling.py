"""What the time of a step on a GPU goes to, kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_parts.timing import settle

MOST = 12  # kernels that are named


def profiled(step: Callable[[], Any], device: str) -> dict[str, Any] | None:
    """Return how many kernels a step runs, and the microseconds of those that take longest.

    None where there is no GPU.
    """
    if device != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        settle(device)
    return summed(profiler.key_averages())


def summed(events: Any) -> dict[str, Any]:
    """Return what is kept of a profiler's events, each of a kernel's name."""
    found = {
        event.key: (event.count, event.self_device_time_total)
        for event in events
        if event.device_type == DeviceType.CUDA
    }
    longest = sorted(found.items(), key=lambda pair: -pair[1][1])
    return {
        "kernels": sum(count for count, _ in found.values()),
        "busy_us": sum(time for _, time in found.values()),
        "by_name_us": {name[:80]: time for name, (_, time) in longest[:MOST]},
    }
