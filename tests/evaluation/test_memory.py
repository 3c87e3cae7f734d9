"""What a decode step reads of a model's parameters, and the peak of a GPU's memory."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.conftest import SHAPES, tiny
from trimtab.evaluation.memory import parameter_bytes, reset_peaks, step_bytes
from trimtab.evaluation.metrics.memory import Memory
from trimtab.evaluation.result import Result


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_reads_one_row_of_a_table_and_all_else(shape):
    model = tiny(shape).model
    head = model.get_output_embeddings().weight
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    unread = sum(table.nbytes - table[0].nbytes for table in tables if table is not head)
    assert step_bytes(model) == parameter_bytes(model) - unread
    assert unread > 0 or (len(tables) == 1 and tables[0] is head)


def test_the_peak_of_a_gpu_has_the_pages_of_the_stacks_caches(monkeypatch):
    """By a model that says it lies on one."""
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {gpu: 700}.get)
    baseline, candidate = (
        SimpleNamespace(model=SimpleNamespace(device=gpu), peak_page_bytes=pages)
        for pages in (0, 40)
    )
    result = Result()
    Memory(SimpleNamespace()).summarise(result, baseline, candidate)
    assert result.content["memory"]["peak_device_bytes"] == 740


def test_the_peaks_of_all_gpus_of_a_model_begin_anew(monkeypatch):
    begun: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", begun.append)
    devices = [torch.device(name) for name in ("cuda:0", "cpu", "cuda:1", "cuda:0")]
    parts = [SimpleNamespace(device=device, nbytes=1) for device in devices]
    reset_peaks(SimpleNamespace(parameters=lambda: parts))
    assert begun == [torch.device("cuda", 0), torch.device("cuda", 1)]
