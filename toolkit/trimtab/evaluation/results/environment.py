"""The sections `environment` and `memory` of result.json."""

from __future__ import annotations

import torch

from trimtab.backing import huge_page_bytes
from trimtab.environment import describe_environment, peak_host_bytes
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.results.result import Result

ABSENT = {
    "gpu": "no CUDA device",
    "driver": "no CUDA device",
    "cuda": "no CUDA device",
    "commit": "not run from a git checkout",
}


def memory_section(
    result: Result, baseline: Contender, candidate: Contender, device: torch.device
) -> None:
    """Fill `memory`: what the process took, and the bytes of both models' parameters."""
    result.sections["memory"] = {
        "peak_host_bytes": peak_host_bytes(),
        "huge_page_bytes": huge_page_bytes(),
        "parameter_bytes": {one.name: one.speed.parameter_bytes for one in (baseline, candidate)},
    }
    if device.type == "cuda":
        result.sections["memory"]["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    else:
        result.missing("memory.peak_device_bytes", "the model ran on the CPU")


def environment_section(result: Result, seed: int) -> None:
    """Fill `environment`; what the machine does not have is None, with a reason."""
    result.sections["environment"] = environment = describe_environment(seed)
    for name, value in environment.items():
        if value is None:
            result.missing(f"environment.{name}", ABSENT[name])
    for name, value in environment["packages"].items():
        if value is None:
            result.missing(f"environment.packages.{name}", "not installed")
