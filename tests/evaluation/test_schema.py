"""The JSON schema of result.json: the one in docs/ is that of the code, and a real result fits."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import jsonschema
import pytest

from tests.conftest import ROOT
from tests.evaluation.test_result import configured
from trimtab.commands.evaluate import evaluate
from trimtab.errors import ConfigError
from trimtab.evaluation import schema
from trimtab.evaluation.metrics import metrics_of
from trimtab.evaluation.metrics.metric import Metric

PATH = ROOT / "docs" / "result.schema.json"
LATENCY, GREEDY = (
    f"trimtab.evaluation.metrics.{one}" for one in ("latency.Latency", "greedy.Greedy")
)
VOCABULARY = {"merged": 3, "quality_budget": 0.1, "operating_points": [], "validation": None}


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, Any]:
    random = ["model=random", "model.config=tiny-llama"]
    return evaluate(configured(tmp_path_factory.mktemp("schema"), *random), "larosa")


def test_the_schema_in_the_documents_is_that_of_the_code():
    assert json.loads(PATH.read_text("utf-8")) == schema.json_schema()


def test_a_real_result_fits_and_one_that_lacks_a_field_or_has_another_type_does_not(content):
    known = schema.json_schema()
    jsonschema.validate(content, known)
    jsonschema.validate({**content, "vocabulary": VOCABULARY}, known)
    assert content["schema"] == schema.SCHEMA
    jsonschema.validate({**content, "pruning": {"share": 0.3}}, known)  # of a method of one's own
    speed, point = content["speed"], {"ngrams": 3, "saving": 0.1}
    for broken in (
        {name: value for name, value in content.items() if name != "kv"},
        {**content, "speed": {**speed, "speedup": {"estimate": 1.0}}},
        {**content, "speed": {**speed, "ttft_ms": {"baseline": 1.0, "candidate": "fast"}}},
        {**content, "methods": None},
        {**content, "calibration": {"larosa": {"wall_seconds": "long"}}},
        {**content, "sparsity": {**content["sparsity"], "achieved": None}},
        {**content, "sparsity": {**content["sparsity"], "layers": [{"layer": 0, "site": "h1"}]}},
        {**content, "vocabulary": {"merged": 3}},
        {**content, "vocabulary": {**VOCABULARY, "validation": point}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, known)


def test_a_name_is_not_a_field_and_a_section_at_once(monkeypatch):
    class Clash(Metric):
        fields: ClassVar[dict[str, Any]] = {"kernel.name": str}

    monkeypatch.setattr(schema, "metrics_of", lambda paths: [Clash])
    with pytest.raises(ValueError, match="^kernel: a field and a section at once"):
        schema.json_schema()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"mine": "trimtab.nowhere.Mine"}, "trimtab has no nowhere"),
        ({"mine": "trimtab.artifact.Artifact"}, "expected a trimtab.evaluation.metrics.Metric"),
        (
            {"mine": "trimtab.evaluation.metrics.Metric"},
            "expected a metric with a method summarise",
        ),
        ({"latency": LATENCY, "greedy": GREEDY}, "needs the samples of Greedy: have it before"),
    ],
)
def test_what_is_no_metric_or_comes_before_what_it_needs_is_refused(paths, message):
    with pytest.raises(ConfigError, match=message):
        metrics_of(paths)


def test_a_metric_that_is_left_out_leaves_no_field(tmp_path):
    random = ["model=random", "model.config=tiny-llama"]
    content = evaluate(configured(tmp_path, *random, "~metrics.kv"), "baseline")
    assert "kv" not in content
    assert content["speed"]["speedup"]["estimate"] > 0
