"""Energy: counters of a made-up machine, and the figures made from them."""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch

from tests.evaluation.test_result import leaves
from trimtab.config import EnergyConfig, MeasureConfig
from trimtab.errors import ConfigError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.energy_counters import NoCounterError, counter_for, rapl
from trimtab.evaluation.job import Job
from trimtab.evaluation.metrics import energy
from trimtab.evaluation.metrics.energy import Energy
from trimtab.evaluation.metrics.greedy import Greedy
from trimtab.evaluation.result import Result
from trimtab.evaluation.schema import json_schema
from trimtab.evaluation.workload import Prompt

RANGE = 262_143_328_850
CPU = [torch.device("cpu")]
# As a machine with two packages, one of them with its own memory counter, lists them.
ZONES = {
    "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
}  # fmt: skip
PROMPT = Prompt("d", "a", "b" * 50)


@pytest.fixture
def powercap(tmp_path) -> Path:
    for zone, name in ZONES.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        show(tmp_path, **{zone: 1_000_000})
    return tmp_path


def show(root: Path, **counts: int) -> None:
    for zone, microjoules in counts.items():
        (root / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_and_their_memory_are_summed_and_a_counter_may_begin_again(powercap):
    counter = rapl(powercap)
    assert (counter.source, counter.spent()) == ("RAPL", 0)
    for zone, more in zip(ZONES, (1, 2, 4, 8, 16, 32), strict=True):
        show(powercap, **{zone: 1_000_000 + more * 1_000_000})
    assert counter.spent() == pytest.approx(1 + 4 + 8)
    assert counter.spent() == 0
    show(powercap, **{"intel-rapl:0": RANGE})
    counter.spent()
    show(powercap, **{"intel-rapl:0": 2_999_999})  # 0 comes after the last value
    assert counter.spent() == pytest.approx(3)


def test_a_machine_without_packages_says_so(tmp_path):
    with pytest.raises(NoCounterError, match=f"no RAPL: {tmp_path} lists no package"):
        counter_for(CPU, tmp_path)


def test_a_counter_that_may_not_be_read_names_the_file_and_the_remedy(powercap, monkeypatch):
    file, read = powercap / "intel-rapl:0" / "energy_uj", Path.read_text

    def guarded(path: Path, *arguments: Any) -> str:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", guarded)  # root may read whatever its mode is
    with pytest.raises(NoCounterError) as error:
        rapl(powercap)
    assert f"no permission to read {file}: sudo chmod a+r {powercap}/intel-rapl:*" in str(
        error.value
    )


@pytest.fixture
def nvml(monkeypatch) -> SimpleNamespace:
    """Pretend that there are two GPUs, and their driver's library."""
    counts = {"GPU-a": 5_000, "GPU-b": 7_000}
    fake = SimpleNamespace(
        counts=counts, NVMLError=KeyError, nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counts[handle],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    properties = {0: SimpleNamespace(uuid="a"), 1: SimpleNamespace(uuid="b")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    return fake


def test_the_gpus_that_a_model_is_on_are_summed(nvml, powercap):
    both = [torch.device("cuda", index) for index in (1, 0, 1)]
    counter, first = counter_for([*both, *CPU], powercap), counter_for(both[1:2], powercap)
    nvml.counts["GPU-a"] += 250
    nvml.counts["GPU-b"] += 1_000
    assert counter.source == "NVML"
    assert counter.spent() == pytest.approx(1.25)
    assert first.spent() == pytest.approx(0.25)


def test_a_gpu_without_a_counter_is_no_reason_to_count_the_processor(nvml, powercap, monkeypatch):
    gpu = [torch.device("cuda", 0)]
    nvml.counts.clear()
    with pytest.raises(NoCounterError, match="NVML counts no energy: 'GPU-a'"):
        counter_for(gpu, powercap)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoCounterError, match=r"pip install 'trimtab\[cuda\]'"):
        counter_for(gpu, powercap)


class Generator:
    """Takes so many joules of the first package, and half a second, to generate any text."""

    def __init__(self, root: Path, clock: list[float], joules: float) -> None:
        self.root, self.clock, self.joules = root, clock, joules

    def teacher_forced(self, prompt: Prompt) -> None:
        before = int((self.root / "intel-rapl:0" / "energy_uj").read_text())
        show(self.root, **{"intel-rapl:0": (before + round(1e6 * self.joules)) % (RANGE + 1)})
        self.clock[0] += 0.5


@pytest.fixture
def measured(powercap, monkeypatch, tiny_llama):
    """Return what measures contenders that take these joules a text of 50 bytes."""
    clock = [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(energy, "counter_for", partial(counter_for, root=powercap))

    def measure(baseline: float, candidate: float, blocks: int = 6) -> Result:
        show(powercap, **{"intel-rapl:0": RANGE - 7_000_000})  # it begins again on the way
        settings = MeasureConfig(energy=EnergyConfig(blocks=blocks))
        config, tokenizer = tiny_llama.model.config, tiny_llama.tokenizer
        job = Job([], tokenizer, config, settings, True, False, paired=True)
        job.metrics[Greedy] = SimpleNamespace(prompts=[PROMPT])
        contenders = []
        for name, joules in (("baseline", baseline), ("candidate", candidate)):
            contenders.append(Contender(name, tiny_llama.model, tokenizer))
            generator: Any = Generator(powercap, clock, joules)
            contenders[-1].generator = generator
        metric, result = Energy(job), Result()
        metric.measure(contenders)
        metric.summarise(result, *contenders)
        return result

    return measure


def test_joules_are_per_1000_bytes_of_blocks_of_a_second(measured):
    result = measured(2.0, 1.5)
    section, rows = result.sections["energy"], result.sections["samples"]["energy"]
    assert section["joules_per_1000_bytes"] == pytest.approx({"baseline": 40, "candidate": 30})
    assert section["ratio"] == pytest.approx({"estimate": 0.75, "low": 0.75, "high": 0.75})
    assert section["source"] == "RAPL"
    assert [row["model"] for row in rows] == ["baseline"] * 6 + ["candidate"] * 6
    assert [(row["texts"], row["bytes"], row["seconds"]) for row in rows] == [(2, 100, 1)] * 12
    known = json_schema()
    jsonschema.validate(section, {**known["properties"]["energy"], "$defs": known["$defs"]})


def test_the_order_of_the_models_is_drawn_for_every_block(measured, monkeypatch):
    turns = []
    block = energy._block

    def noted(contender, *arguments):
        turns.append(contender.name)
        return block(contender, *arguments)

    monkeypatch.setattr(energy, "_block", noted)
    measured(2.0, 1.5, blocks=40)
    firsts = turns[::2]
    assert {*map(frozenset, zip(firsts, turns[1::2], strict=True))} == {
        frozenset(("baseline", "candidate"))
    }
    assert 10 < firsts.count("baseline") < 30
    again = sum(one == two for one, two in pairwise(firsts))
    assert 10 < again < 30


@pytest.mark.parametrize(
    ("joules", "blocks", "reason"),
    [(2.0, 0, "energy.blocks=0"), (0.0, 6, "RAPL stood still for a whole block")],
)
def test_what_is_not_measured_says_why(measured, joules, blocks, reason):
    content = measured(joules, joules, blocks).content
    assert content["reasons"] == {"energy": reason}
    assert [name for name, value in leaves(content).items() if value is None] == ["energy"]


@pytest.mark.parametrize("blocks", [-1, 1, 5])
def test_too_few_blocks_for_an_interval_are_refused(blocks):
    with pytest.raises(ConfigError, match=rf"energy.blocks={blocks}: expected 0 or at least 6"):
        EnergyConfig(blocks=blocks)
