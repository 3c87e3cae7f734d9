"""What README and docs show is what runs: snippets, commands, and the two ways of extending."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf

from tests.conftest import ROOT, tiny
from tests.models.contract import AdapterContract
from tests.models.larosa_contract import LaRoSAContract
from tests.models.plan_contract import PlanContract
from trimtab.commands.check import typed
from trimtab.commands.overrides import expand
from trimtab.config import CalibrateConfig, EvaluateConfig
from trimtab.method import Method
from trimtab.models import adapter, architectures, shapes
from trimtab.registry import build, config_folder, register

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/RESULTS.md"]
KINDS: dict[str, Any] = {"calibrate": CalibrateConfig, "evaluate": EvaluateConfig}
TINY = ["model=random", "model.config=tiny-llama", "tracking.mode=disabled", "threads=1"]
FAST = [
    "quality.windows=2", "quality.window_bytes=128", "quality.context_bytes=16",
    "generation.prompts=2", "generation.prompt_bytes=32", "generation.new_tokens=4",
    "speed.repeats=3", "speed.seconds=0", "serving.requests=[]", "corpus.max_documents=20",
]  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page that are in this language; none is named by ``""``."""
    parts = re.split(r"^```(.*)$", page.read_text("utf-8"), flags=re.M)
    # Text, what follows a fence, block, what follows its end (nothing), and so on.
    fenced = zip(parts[1::4], parts[2::4], strict=True)
    return [block for name, block in fenced if name.strip() == language]


def written_files(page: Path) -> dict[str, str]:
    """Return the blocks of a page that follow the name of a file, by that name."""
    found = re.findall(r"^`([\w/.-]+)`:\n\n```\w+\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    return dict(found)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/python.md", "docs/lm-eval.md"], ids=lambda name: Path(name).stem
)
def test_the_python_on_a_page_runs_as_it_stands(page, monkeypatch, tmp_path):
    if page == "docs/lm-eval.md":
        pytest.importorskip("lm_eval")
    for name, text in written_files(ROOT / page).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    loaded = tiny()
    texts = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(500)) for n in range(12)]
    given = {"model": loaded.model, "tokenizer": loaded.tokenizer, "texts": texts}
    namespace: dict[str, Any] = {**given, "held_out": texts[:6]}
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    found = blocks(ROOT / page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), namespace)
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def commands() -> list[tuple[str, list[str]]]:
    """Return the commands on all pages: which of the two, and its arguments."""
    found = []
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.replace("\\\n", " ").splitlines():
                if ".py" not in line:
                    continue
                words = shlex.split(line, comments=True)
                name = next((one for one in KINDS if f"{one}.py" in words[:2]), None)
                if name and not {"--help", "--cfg"} & set(words) and "resume=" not in line:
                    launchers = ("hydra/launcher=", "hydra.launcher.")  # may not be installed
                    found.append(
                        (name, [one for one in words[2:] if not one.startswith(launchers)])
                    )
    return found


@pytest.mark.parametrize(("name", "arguments"), commands(), ids=str)
def test_the_commands_on_the_pages_compose(name, arguments, monkeypatch):
    monkeypatch.setattr("trimtab.config.workload.find_spec", lambda extra: extra)  # as if installed
    register()
    expanded = [one for one in expand(arguments, name) if one not in ("-m", "--multirun")]
    parsed = OverridesParser.create().parse_overrides(expanded)
    single = []
    for override in parsed:
        value = override.value()
        if override.is_delete():
            single.append(override.input_line)
            continue
        if isinstance(value, Glob):
            value = "all"
        elif override.is_sweep_override():
            value = list(override.sweep_string_iterator())[-1]
        else:
            value = override.get_value_element_as_str()
        single.append(f"{override.input_line.partition('=')[0]}={value}")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(name, single)
    if any("/models/" in one or one.startswith("corpus.glob=") for one in arguments):
        return  # a reader's folder or files
    settings = typed(config, KINDS[name])
    one = [settings.method] if name == "calibrate" and settings.method else []
    nodes = one or settings.methods.values()
    assert all(isinstance(build(node, Method), Method) for node in nodes)


def test_there_are_commands_on_the_pages():
    assert len(commands()) > 15


def test_the_method_of_the_page_works_as_written(command, tmp_path):
    for name in ("toolkit", "kernels", "conf", "calibrate.py", "evaluate.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    files = written_files(ROOT / "docs/extending.md")
    metric = "toolkit/trimtab/evaluation/metrics/repetition.py"
    for name in ("toolkit/trimtab/prune/__init__.py", "conf/method/prune.yaml", metric):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(files[name])
    path = f"{tmp_path / 'toolkit'}:{tmp_path / 'kernels'}"

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command(str(tmp_path / script), *arguments, PYTHONPATH=path)

    shown = run("calibrate.py", "--help").stdout
    assert "share of the weights that are zero (at least 0 and below 1)" in shown
    refused = run("calibrate.py", "method=prune", "share=2")
    assert refused.stderr.endswith("prune.share=2.0: expected at least 0 and below 1\n")
    made = run("calibrate.py", "method=prune", "share=0.3", *TINY, "corpus.max_documents=20")
    assert made.returncode == 0, made.stderr
    measured = "+metrics.repetition=trimtab.evaluation.metrics.repetition.Repetition"
    done = run("evaluate.py", "methods=[prune,vattention]", "share=0.3", measured, *TINY, *FAST)
    assert done.returncode == 0, done.stderr
    (path_of_result,) = tmp_path.glob("outputs/*/*/result.json")
    result = json.loads(path_of_result.read_text())
    assert result["methods"] == ["prune", "vattention"]
    assert result["artifacts"]["prune"] == Path(made.stdout.strip()).name
    assert result["pruning"]["share"] == pytest.approx(0.3, abs=0.01)
    for name, share in result["repetition"].items():
        words = [text[name].split() for text in result["samples"]["texts"]]
        new = sum(len(set(text)) for text in words)
        assert share == pytest.approx(1 - new / sum(map(len, words)))
    result["repetition"]["candidate"] += 0.25  # what does not differ is not drawn
    path_of_result.write_text(json.dumps(result))
    measure = tmp_path / "toolkit/trimtab/config/measure.py"
    line = '"repetition": "repetition.Repetition",'
    measure.write_text(measure.read_text().replace('"kv": "kv.KV",', f'"kv": "kv.KV", {line}'))
    reported = command("-m", "trimtab.report", str(path_of_result.parent), PYTHONPATH=path)
    assert reported.returncode == 0, reported.stderr
    report = Path(reported.stdout.strip())
    assert (report.parent / "repetition.png").exists()
    assert "| repeated |" in report.read_text()


@pytest.fixture(scope="class")
def _extended_as_written():
    """Have the architecture of the page among those that are supported."""
    files = written_files(ROOT / "docs/extending.md")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "ADAPTERS", dict(architectures.ADAPTERS))
        exec(files["toolkit/trimtab/models/architectures.py"], vars(architectures))
        patch.setattr(adapter, "ADAPTERS", architectures.ADAPTERS)
        new = OmegaConf.to_container(OmegaConf.create(files["toolkit/trimtab/models/shapes.yaml"]))
        every = {**shapes.shapes(), **new}
        patch.setattr(shapes, "shapes", lambda: every)
        yield


@pytest.mark.usefixtures("_extended_as_written")
class TestTheArchitectureOfThePage(AdapterContract, LaRoSAContract, PlanContract):
    shape = "tiny-starcoder2"


def test_the_page_names_the_test_that_stands_here():
    written = written_files(ROOT / "docs/extending.md")["tests/models/test_adapters.py"]
    assert written.split(":\n")[1].strip() == 'shape = "tiny-starcoder2"'
    assert "(AdapterContract, LaRoSAContract, PlanContract)" in written


def test_what_pages_and_errors_say_to_install_are_extras():
    pages = [*PAGES, *(ROOT / "toolkit").rglob("*.py")]
    told = {
        extra
        for page in pages
        for extra in re.findall(r"'(?:trimtab|\.)\[([\w-]+)\]'", page.read_text("utf-8"))
    }
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"cuda", "gemma3", "lm-eval", "search"} <= told <= set(known["optional-dependencies"])
