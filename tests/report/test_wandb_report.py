"""A sweep as a W&B Report: what is refused, and what is built."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import TrimtabError
from trimtab.evaluation.schema import SCHEMA
from trimtab.report import wandb_report
from trimtab.sweep_state import ENVIRONMENT
from trimtab.tracking.job import Record

GROUP = "2026-01-01/lr=0.1,it's <5>"  # what the library reads as Python, after replacing signs


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep's folder as its jobs leave it: two results and an error."""
    for number, (label, speedup) in enumerate({"larosa": 1.2, "vattention": 1.7}.items()):
        result = {
            "schema": SCHEMA, "status": "ok", "label": label, "overrides": [], "methods": [label],
            "kernel": "torch", "environment": dict.fromkeys(ENVIRONMENT) | {"packages": {}},
            "speed": {"speedup": {"estimate": speedup, "low": 1.1, "high": 1.8}},
            "quality": {"bits_per_byte": {"difference": {"estimate": 0.1, "low": 0, "high": 0.2}}},
            "tokens": {"saving": None},
        }  # fmt: skip
        _write(tmp_path / str(number) / "result.json", result)
    error = {"status": "error", "label": "all", "overrides": [], "type": "X", "message": "why"}
    _write(tmp_path / "2" / "error.json", error)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("# Found\n\n| a |\n|---|\n\n![plot](plot.png)\n")
    (tmp_path / "report" / "plot.png").touch()
    return tmp_path


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def library(monkeypatch):
    """Return the library, with an answer to the one question it has for W&B: a project's id."""
    interface = pytest.importorskip("wandb_workspaces.reports.v2.interface")
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "p"}})


@pytest.mark.usefixtures("library")
def test_the_report_shows_the_sweep(sweep):
    report = wandb_report.build(sweep, "us", "ours", GROUP)
    content = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    blocks = {kind: [one for one in content["blocks"] if one["type"] == kind]
              for kind in ("markdown-block", "panel-grid")}  # fmt: skip
    (text,) = blocks["markdown-block"]
    assert text["content"].strip() == "# Found\n\n| a |\n|---|"
    jobs, whole = (one["metadata"] for one in blocks["panel-grid"])
    for grid, kind in ((jobs, "evaluate"), (whole, "summary")):
        (runs,) = grid["runSets"]
        chosen = {one["key"]["name"]: one["value"] for one in runs["filters"]["filters"]}
        assert chosen == {"group": GROUP, "jobType": kind}
        assert (runs["project"]["entityName"], runs["project"]["name"]) == ("us", "ours")
    panels = [one["config"] for one in jobs["panelBankSectionConfig"]["panels"]]
    assert [one.get("metrics") for one in panels] == [
        ["speed.speedup.low", "speed.speedup.estimate", "speed.speedup.high"],
        [f"quality.bits_per_byte.difference.{end}" for end in ("low", "estimate", "high")],
        None,
    ]
    assert (panels[2]["xAxis"], panels[2]["yAxis"]) == (
        "summary:speed.speedup.estimate", "summary:quality.bits_per_byte.difference.estimate"
    )  # fmt: skip
    table, plots = whole["panelBankSectionConfig"]["panels"]
    assert '"jobs"' in json.dumps(table["config"])
    assert plots["config"]["mediaKeys"] == ["plots/plot"]


@pytest.mark.parametrize(("differs", "bars"), [("seed=1", True), ("model.seed=1", False)])
@pytest.mark.usefixtures("library")
def test_repeats_with_other_seeds_have_error_bars(sweep, differs, bars):
    again = json.loads((sweep / "0" / "result.json").read_text())
    _write(sweep / "3" / "result.json", again | {"overrides": [differs]})
    report = wandb_report.build(sweep, "us", "ours", GROUP)
    content = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    grid = next(one for one in content["blocks"] if one["type"] == "panel-grid")
    plot = grid["metadata"]["panelBankSectionConfig"]["panels"][0]["config"]
    assert (plot.get("groupBy"), plot.get("groupArea")) == (
        ("displayName", "stderr") if bars else (None, None)
    )


@pytest.mark.parametrize("destination", ["ours", "us/ours/more", "/ours", "us/"])
def test_a_destination_that_is_none_is_refused(sweep, destination):
    with pytest.raises(TrimtabError, match=f"^--wandb {destination}: expected ENTITY/PROJECT$"):
        wandb_report.publish([sweep], destination)


@pytest.mark.parametrize("tracks", [True, False])
def test_what_has_no_group_of_runs_is_refused(sweep, tracks):
    if tracks:
        where = {"mode": "offline", "project": "p", "entity": None, "folder": "outputs"}
        Record(**where, id="r1", group=None, directory="run").write(sweep / "0")
    expected = f"^--wandb us/ours: {sweep} is not the folder of a sweep whose jobs have W&B runs"
    with pytest.raises(TrimtabError, match=expected):
        wandb_report.publish([sweep], "us/ours")


def test_a_report_is_of_one_sweep(sweep):
    with pytest.raises(TrimtabError, match="^--wandb us/ours: publishes one sweep"):
        wandb_report.publish([sweep, sweep], "us/ours")
