"""The sweeps of conf/sweeps, by the command lines that `wandb agent` issues."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.wandb_agent import Agent

from tests.conftest import ROOT, TINY
from tests.test_cli_evaluate import FAST, METHOD
from tests.test_config import composed
from tests.wandb_runs import runs_in
from trimtab.commands.check import typed
from trimtab.commands.overrides import expand
from trimtab.config import METRICS, EvaluateConfig
from trimtab.evaluation.metrics import metrics_of
from trimtab.method import Method
from trimtab.registry import build, config_folder

SWEEPS = sorted((config_folder() / "sweeps").glob("*.yaml"))
SMALL = dict(one.split("=") for one in [*TINY, *METHOD, *FAST])


def values(parameter: dict[str, Any]) -> list[Any]:
    """Return what a parameter may be: all of it, or the ends of a range."""
    if "value" in parameter:
        return [parameter["value"]]
    return parameter.get("values") or [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_composes_and_has_its_metric(path):
    sweep = yaml.safe_load(path.read_text())
    fields = [field for metric in metrics_of(METRICS) for field in metric.fields]
    metric = sweep["metric"]["name"]
    assert any(f"{metric}.".startswith(f"{field}.") for field in fields)
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert (ROOT / sweep["program"]).is_file()
    parameters = sweep["parameters"]
    for chosen in product(*map(values, parameters.values())):
        run = {name: {"value": value} for name, value in zip(parameters, chosen, strict=True)}
        arguments = create_sweep_command_args({"args": run})["args_no_hyphens"]
        settings = typed(composed("evaluate", *expand(arguments, "evaluate")), EvaluateConfig)
        assert all(isinstance(build(one, Method), Method) for one in settings.methods.values())


def test_a_run_that_an_agent_starts(monkeypatch, tmp_path):
    variables = {"SWEEP_ID": "sw33p", "PROJECT": "ours", "ENTITY": "us", "DIR": str(tmp_path)}
    for name, value in {**variables, "RUN_ID": "", "SWEEP_PARAM_PATH": ""}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)  # the agent sets the last ones
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.chdir(tmp_path)
    sweep = yaml.safe_load((config_folder() / "sweeps" / "sparsity.yaml").read_text())
    (tmp_path / sweep["program"]).symlink_to(ROOT / sweep["program"])

    given = {**SMALL, "methods": "larosa", "methods.larosa.sparsity": 0.4}
    agent = Agent(api=None, queue=None, sweep_id="sw33p")
    agent._sweep_command = sweep["command"]
    agent._command_run(
        {"type": "run", "run_id": "r1", "program": sweep["program"],
         "args": {name: {"value": value} for name, value in given.items()}}
    )  # fmt: skip
    assert agent._run_processes["r1"].wait(timeout=300) == 0

    (run,) = runs_in(tmp_path)
    assert (run.page["run_id"], run.page["project"], run.page["entity"]) == ("r1", "ours", "us")
    assert run.summary["speed.speedup.estimate"] > 0
    assert run.config["methods"] == "larosa"
    # The parameter and the setting are one; the settings beside it are not lost.
    assert run.config["methods.larosa.sparsity"] == 0.4
    assert run.config["methods.larosa.basis"] == "fisher_pca"
    assert not [name for name, item in run.config.items() if isinstance(item, dict)]


def test_runs_of_an_agent_are_online_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    assert typed(composed("evaluate"), EvaluateConfig).tracking.mode == "offline"
    monkeypatch.delenv("WANDB_MODE")
    assert typed(composed("evaluate"), EvaluateConfig).tracking.mode == "online"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert typed(composed("evaluate"), EvaluateConfig).tracking.mode == "offline"
