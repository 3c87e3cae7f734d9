"""What a report says of settings that calibration chose."""

import pytest

from tests.report.cases import interval, result, sparse, written
from trimtab.report import build_report

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_report_has_the_candidates_that_calibration_chose_from(tmp_path):
    settings = {"allocation": "steepest", "transforms": "auto", "bytes_fraction": 0.6}
    rows = [
        {"selection": "threshold", **settings, "excess": interval(0.02, 0.01, 0.03),
         "reason": None, "chosen": False},
        {"selection": "topk", **settings, "excess": interval(0.01, -0.01, 0.02),
         "reason": None, "chosen": True},
        {"selection": "topk", **settings, "allocation": "uniform", "excess": None,
         "reason": "at most 0.3 can be saved", "chosen": False},
    ]  # fmt: skip
    job, other = sparse(result("larosa")), sparse(result("larosa p=0.6"))
    job["sparsity"]["candidates"], other["sparsity"]["candidates"] = rows, None
    report = build_report(written(tmp_path, [result("baseline"), job, other]))
    expected = (
        "`selection=topk allocation=steepest transforms=auto` +0.0100 [-0.0100, +0.0200]; tried "
        "too: `selection=threshold allocation=steepest transforms=auto` +0.0200 [+0.0100, "
        "+0.0300]; `selection=topk allocation=uniform transforms=auto` at most 0.3 can be saved"
    )
    told = "chosen by calibration, with nats a token of validation text over dense: "
    assert report.read_text().count(told) == 1
    assert f"- {told}{expected}\n" in report.read_text()
    page = report.with_suffix(".html").read_text()
    assert page.count("Chosen by calibration") == 1
    assert "<code>selection=topk allocation=steepest transforms=auto</code> +0.0100" in page
