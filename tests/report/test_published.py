"""What papers and the methods together promise, answered by a sweep's own figures."""

import json

import pytest

from tests.report.cases import about, interval, result, serving, written
from trimtab.report import build_report
from trimtab.report.claims import claims
from trimtab.report.load import load_jobs
from trimtab.report.published import comparisons

pytestmark = pytest.mark.usefixtures("undrawn")

FUSED = ("adaptivocab", "vattention")
WHOLE = ("adaptivocab", "larosa", "vattention")


def test_a_published_figure_is_beside_the_smallest_stacks_that_hold_its_method(tmp_path):
    larosa, random = result("larosa", (1.2, 1.1, 1.3)), result("larosa p=0.6")
    larosa["quality"]["perplexity"] = {"baseline": 20.0, "ratio": interval(1.05, 1.02, 1.1)}
    random |= {"quality": None}
    random["reasons"]["quality"] = "its weights are random"
    stacks = [result("fused", methods=FUSED), result("all", methods=WHOLE)]
    jobs = load_jobs(written(tmp_path, [result("baseline"), larosa, random, *stacks]))
    found = {(one.published.field, one.row.label): one for one in comparisons(jobs)}
    assert {label for _, label in found} == {"larosa", "larosa p=0.6", "fused"}
    assert found["speed.speedup", "larosa"].measured == interval(1.2, 1.1, 1.3)
    gap = found["derived.perplexity_gap", "larosa"].measured
    assert gap == pytest.approx({"estimate": 1.0, "low": 0.4, "high": 2.0})
    lacking = found["derived.perplexity_gap", "larosa p=0.6"]
    assert (lacking.measured, lacking.reason) == (None, "its weights are random")
    assert found["tokens.saving", "fused"].measured == 0.123


def answers(tmp_path, job):
    return [one.answer for one in claims(load_jobs(written(tmp_path, [job])))]


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ("faster", "confirmed"),
        ("slower", "not confirmed"),
        ("no difference found", "not confirmed"),
        ("too noisy to say", "too noisy to say"),
    ],
)
def test_more_texts_are_claimed_by_the_verdict(tmp_path, told, answer):
    job = result("fused", methods=FUSED)
    job["speed"]["verdict"] = told
    assert answers(tmp_path, job)[2] == answer


@pytest.mark.parametrize(
    ("tokens", "committed", "expected"),
    [(900, 1000, "confirmed"), (999, 1999, "not confirmed"), (1100, 3000, "not confirmed")],
)
def test_tokens_and_memory_are_claimed_by_what_was_counted(tmp_path, tokens, committed, expected):
    job = result("fused", methods=FUSED, committed=committed)
    job["tokens"]["candidate"] = tokens
    assert answers(tmp_path, job)[:2] == [expected] * 2


def test_memory_while_serving_counts_where_it_was_measured(tmp_path):
    job = serving(result("all", methods=WHOLE, committed=9000), (1.0, 0.9, 1.1))
    assert answers(tmp_path, job)[1] == "confirmed"


def test_what_was_not_measured_is_neither_confirmed_nor_refuted(tmp_path):
    job = result("all", methods=WHOLE) | {"speed": None, "tokens": None, "kv": None}
    assert answers(tmp_path, job) == ["not measured"] * 3


def test_the_report_has_both_tables_and_a_sweep_of_no_such_method_neither(tmp_path):
    jobs = [result("baseline"), result("fused", (1.5, 1.4, 1.6), methods=FUSED)]
    text = build_report(written(tmp_path / "one", jobs)).read_text()
    assert (
        "| `adaptivocab` | tokens saved | over 25 %, two 7B models on three domains, fine-tuned "
        "(arXiv 2503.19693) | `fused` | 12.3% |"
    ) in text
    assert "| `fused` | fewer tokens for the same text | 1,000 | 877 | × 0.88 | confirmed |" in text
    content = json.loads((tmp_path / "one/report/comprehensive_benchmark_results.json").read_text())
    assert content["published"][0]["published"] == "over 25 %"
    assert [one["answer"] for one in content["claims"]][::2] == ["confirmed"] * 2
    other = build_report(written(tmp_path / "two", [result("baseline"), result("own")]))
    assert "published" not in other.read_text()
    assert "claims" not in other.read_text()


def test_amounts_are_beside_the_unmodified_models(tmp_path):
    job = result("fused", (2.0, 1.9, 2.1), methods=FUSED)
    job["tokens"]["per_text"] = {"baseline": 50.0, "candidate": 43.85}
    job["speed"]["texts_per_s"] = {"baseline": about(0.5), "candidate": about(1.0)}
    text = build_report(written(tmp_path, [job])).read_text()
    assert (
        "| `fused` | 2.00 [1.90, 2.10] | 1,000 → 877 | 50.0 → 43.9 | 0.0 → 0.0 "
        "| 0.50 [0.45, 0.55] → 1.00 [0.90, 1.10] | 10.0 [9.0, 11.0] → 20.0 [18.0, 22.0] |"
    ) in text
