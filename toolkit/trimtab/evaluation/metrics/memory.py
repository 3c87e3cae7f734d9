"""What the process took of memory, and the parameters of both models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from trimtab.backing import huge_page_bytes
from trimtab.environment import peak_host_bytes
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.job import Job
from trimtab.evaluation.memory import parameter_bytes
from trimtab.evaluation.metrics.metric import Both, Metric
from trimtab.evaluation.result import Result


class Memory(Metric):
    """Bytes of the process and of the parameters; comes last, as it counts what all others took."""

    fields: ClassVar[dict[str, Any]] = {
        "model.parameters": int,
        "memory.peak_host_bytes": int,
        "memory.huge_page_bytes": int,
        "memory.parameter_bytes": Both[int],
        "memory.peak_device_bytes": int,
    }

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._parameter_bytes: dict[str, int] = {}
        self._parameters = 0

    def measure(self, contenders: Sequence[Contender]) -> None:
        """See `Metric.measure`."""
        for one in contenders:
            self._parameter_bytes[one.name] = parameter_bytes(one.model)
            if one.name == "baseline":
                self._parameters = one.model.num_parameters()

    def summarise(self, result: Result, baseline: Contender, candidate: Contender) -> None:
        """See `Metric.summarise`."""
        device = candidate.model.device
        result.put("model.parameters", self._parameters)
        result.put("memory.peak_host_bytes", peak_host_bytes())
        result.put("memory.huge_page_bytes", huge_page_bytes())
        result.put("memory.parameter_bytes", self._parameter_bytes)
        if device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(device)
            result.put("memory.peak_device_bytes", allocated + candidate.peak_page_bytes)
        else:
            result.missing("memory.peak_device_bytes", "the model ran on the CPU")
