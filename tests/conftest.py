"""Shared fixtures. Nothing here, and nothing in the suite, reaches the network."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # commands read the bytecode of those before them

import torch
from transformers import PreTrainedTokenizerBase

from tests.zygote import Zygote
from trimtab.corpus import Corpus, Document
from trimtab.generation.cost_cache import StepCosts
from trimtab.generation.executor import MOST_ROWS
from trimtab.models.loading import LoadedModel, load_model
from trimtab.models.random import byte_tokenizer
from trimtab.models.shapes import shapes
from trimtab.models.sources import DType, EmbeddedModel, RandomModel
from trimtab.vattention import host

torch.set_num_threads(1)
# Others may be busy on the machine, and a run says the same as the one before it, unless
# `--hypothesis-profile=exploring` draws other examples.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("exploring", deadline=None)
settings.load_profile("repeatable")
# Freed memory is kept for the next tensor: the system takes long to hand out the same pages again.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": 2**30, "MALLOC_MMAP_THRESHOLD_": 2**25}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
for parameter, size in zip((M_TRIM_THRESHOLD, M_MMAP_THRESHOLD), MALLOC.values(), strict=True):
    assert ctypes.CDLL(None).mallopt(parameter, size)

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [name for name in shapes() if name.startswith("tiny-")]
FLAT = StepCosts((1.0,) * MOST_ROWS, "2026-01-01T00:00:00Z")
TINY = ["model=random", "model.config=tiny-llama"]
SMALL = ["tokens=512", "window=64"]

WHOLE_SUITE = 3000  # tests: with fewer, somebody asked for a part
FEW_CASES = 2

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whatever reads where a cache has no page crash, as it would on a GPU."""
    monkeypatch.setattr(host, "_UNUSED_ACCESS", 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "all cases of every test, and the tests that are marked exhaustive"
    parser.addoption("--exhaustive", action="store_true", help=told)


@pytest.hookimpl(trylast=True)  # after -m and -k have left their tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run what takes longest first, beside all else; skip what needs a GPU where there is none.

    Of tests of the whole suite that have many cases some are run, unless all are asked for.
    """
    if not config.getoption("exhaustive") and len(items) > WHOLE_SUITE:
        left_out = surplus(items)
        config.hook.pytest_deselected(items=[one for one in items if one.nodeid in left_out])
        items[:] = [one for one in items if one.nodeid not in left_out]
    items.sort(key=lambda item: ("smollm2" not in item.keywords, "zygote" not in item.fixturenames))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def surplus(items: Iterable[pytest.Item]) -> set[str]:
    """Return the tests that a run of the whole suite leaves out, always the same ones.

    Those marked exhaustive, and of every test with more than `FEW_CASES` all but an eighth of its
    cases and no less than `FEW_CASES`: those whose names have the smallest checksums, which lie
    anywhere among architectures, dtypes and sizes.
    """
    left_out, cases = set(), defaultdict(list)
    for item in items:
        if item.get_closest_marker("exhaustive"):
            left_out.add(item.nodeid)
        else:
            cases[item.nodeid.partition("[")[0]].append(item.nodeid)
    for names in cases.values():
        names.sort(key=lambda name: crc32(name.encode()))
        left_out.update(names[max(FEW_CASES, len(names) // 8) :])
    return left_out


def pytest_collection_finish() -> None:
    """Spare the garbage collections of all tests the half million objects that imports made."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def variables() -> dict[str, str]:
    """Return the environment of a command: this checkout is first on its path."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="session", autouse=True)
def any_draft_pays() -> Iterator[None]:
    """Have drafts be as long as they are proposed, whatever steps take on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.generation.engine.step_costs", lambda *_: FLAT)
        yield


def in_checkout(script: str) -> str:
    """Return the path of a script, and an option of Python as it is."""
    return script if script.startswith("-") else str(ROOT / script)


@pytest.fixture
def fresh_command(tmp_path: Path) -> Command:
    """Run a script of the checkout as a user would, in a folder of its own and a new Python.

    Or a module, after ``-m``, or code, after ``-c``.
    """

    def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, in_checkout(script), *arguments],
            cwd=tmp_path,
            env={**variables(), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Return what forks processes that need not import PyTorch; they run on one thread."""
    limits = {name: str(value) for name, value in {**MALLOC, "OMP_NUM_THREADS": 1}.items()}
    with closing(Zygote({**variables(), **limits})) as zygote:
        yield zygote


@pytest.fixture
def command(fresh_command: Command, zygote: Zygote, tmp_path: Path) -> Command:
    """Do as `fresh_command` does in a fraction of the time."""
    if torch.cuda.is_available():  # CUDA may not be used in a fork of what has looked for it
        return fresh_command

    def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return zygote.run(in_checkout(script), *arguments, cwd=tmp_path, **environment)

    return run


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@cache
def drawn_once(name: str, dtype: DType, seed: int) -> LoadedModel:
    return load_model(RandomModel(device="cpu", dtype=dtype, config=name, seed=seed))


def tiny(name: str = "tiny-llama", dtype: DType = DType.float32, seed: int = 0) -> LoadedModel:
    """Return a tiny model with random weights; it is the caller's own."""
    return copy.deepcopy(drawn_once(name, dtype, seed))


@pytest.fixture
def tiny_llama() -> LoadedModel:
    return tiny()


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Use this worker's share of the cores: the tiny models of other tests run faster on one."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    return load_model(EmbeddedModel(device="cpu", dtype=DType.float32))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Return forty small documents of words, the same every time."""
    documents = [
        Document(f"document-{n}", " ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)))
        for n in range(40)
    ]
    return Corpus("words", documents, calibration=0.5, validation=0.2)


def drawn(*shape: int) -> torch.Tensor:
    """Return normally distributed numbers of that shape, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def random_inputs(*shape: int) -> torch.Tensor:
    """Return token ids of that shape, the same for the same shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator)
