"""What methods do alone and together, against sums made by hand."""

import json
from math import log

import pytest
from scipy.stats import t

from tests.report.cases import NOISE, result, written
from trimtab.report import build_report
from trimtab.report.attribution import attributions, missing
from trimtab.report.load import load_jobs
from trimtab.report.seeds import rows

pytestmark = pytest.mark.usefixtures("undrawn")


def sweep(*jobs):
    return [result("baseline", lost=0, same=True), *jobs]


SINGLES = (
    result("larosa", (1.25, 1.2, 1.3), lost=0.02),
    result("vattention", (2.0, 1.9, 2.1), lost=0, committed=1000),
)
BOTH = result("both", (4.0, 3.8, 4.2), methods=("larosa", "vattention"), lost=0.03, committed=500)


@pytest.fixture
def effects(tmp_path):
    rows = load_jobs(written(tmp_path, sweep(*SINGLES, BOTH)))
    return {
        (one.metric.key, effect.kind, effect.method): effect
        for one in attributions(rows)
        for effect in one.effects
    }


@pytest.mark.parametrize(
    ("metric", "kind", "method", "factor"),
    [
        ("ms_per_byte", "alone", "larosa", 1 / 1.25),
        ("ms_per_byte", "alone", "vattention", 1 / 2),
        ("ms_per_byte", "in the stack", "larosa", 2 / 4),
        ("ms_per_byte", "in the stack", "vattention", 1.25 / 4),
        ("ms_per_byte", "interaction", "", 2.5 / 4),
        ("kv_bytes_per_byte", "alone", "vattention", 0.5),
        ("kv_bytes_per_byte", "interaction", "", 0.5),
    ],
)
def test_times_and_memory_multiply(effects, metric, kind, method, factor):
    assert effects[metric, kind, method].change == pytest.approx(log(factor))


@pytest.mark.parametrize(
    ("kind", "method", "bits"),
    [
        ("alone", "larosa", 0.02),
        ("in the stack", "larosa", 0.03),
        ("in the stack", "vattention", 0.01),
        ("interaction", "", 0.01),
    ],
)
def test_bits_add_up(effects, kind, method, bits):
    assert effects["bits_per_byte", kind, method].change == pytest.approx(bits)


def test_alone_a_method_has_the_interval_of_its_job(effects):
    alone = effects["ms_per_byte", "alone", "larosa"]
    assert (alone.low, alone.high) == pytest.approx((-log(1.3), -log(1.2)))


def test_intervals_of_times_add_up_the_variances_of_the_jobs(effects):
    # Each job has 4 log ratios of one variance: n jobs have n of it, and 3n degrees of freedom.
    variance = sum(noise**2 for noise in NOISE) / 3 / len(NOISE)
    for kind, method, jobs in (("in the stack", "larosa", 2), ("interaction", "", 3)):
        found = effects["ms_per_byte", kind, method]
        half = t.ppf(0.975, 3 * jobs) * (jobs * variance) ** 0.5
        assert (found.low, found.high) == pytest.approx((found.change - half, found.change + half))


def test_intervals_of_bits_are_of_the_same_windows(effects):
    # Per byte, the interaction's windows are at 0.005 and 0.015: mean 0.01, error 0.005.
    found = effects["bits_per_byte", "interaction", ""]
    half = t.ppf(0.975, 1) * 0.005
    assert (found.low, found.high) == pytest.approx((0.01 - half, 0.01 + half))


def test_seeds_that_scored_the_same_windows_count_as_one(tmp_path):
    def seeds(job):
        typed = [f"methods={job['label']}"]
        return [
            job
            | {"overrides": [*typed, f"seed={seed}"]}
            | {"environment": job["environment"] | {"seed": seed}}
            for seed in range(3)
        ]

    jobs = [one for job in sweep(*SINGLES, BOTH) for one in seeds(job)]
    (bits,) = [one for one in attributions(rows(load_jobs(written(tmp_path, jobs))))
               if one.metric.key == "bits_per_byte"]  # fmt: skip
    (found,) = [one for one in bits.effects if one.kind == "interaction"]
    half = t.ppf(0.975, 1) * 0.005
    assert (found.low, found.high) == pytest.approx((0.01 - half, 0.01 + half))


def test_an_effect_that_is_computed_from_a_job_that_does_not_compare_is_marked(tmp_path):
    jobs = json.loads(json.dumps(sweep(*SINGLES, BOTH)))
    jobs[1]["speed"]["verdict"] = "too noisy to say"
    jobs[3]["speed"]["ms_per_byte"]["baseline"]["estimate"] = 9.0
    lines = build_report(written(tmp_path, jobs)).read_text().splitlines()
    effects = [line.split(" | ")[2] for line in lines if line.startswith("| `both` | time, ms")]
    assert effects == [
        "larosa, alone (too noisy)",
        "vattention, alone",
        "larosa, in the stack (not ranked)",
        "vattention, in the stack (not ranked, too noisy)",
        "interaction (not ranked, too noisy)",
    ]
    assert not [line for line in lines if line.startswith("| `both` | bits") and "noisy" in line]
    told = next(line for line in lines if line.startswith("`alone`: the method by itself"))
    assert "Not ranked: the machine was not the same" in told
    assert "Too noisy: noise hides" in told
    assert any(line.startswith("| `larosa` (too noisy) | 1.25 [1.20, 1.30] |") for line in lines)
    found = next(line for line in lines if line.startswith("| `larosa` | speedup | 1.30 times"))
    assert found.endswith("| `larosa` | 1.25 [1.20, 1.30] (too noisy) |")
    content = json.loads((tmp_path / "report/comprehensive_benchmark_results.json").read_text())
    assert content["attribution"][0]["effects"][0]["mark"] == "too noisy"
    assert content["published"][0]["mark"] == "too noisy"


def test_memory_is_counted_and_has_no_interval(effects):
    assert effects["kv_bytes_per_byte", "interaction", ""].low is None


@pytest.mark.parametrize("change", ["unpaired", "unmatched", "none"])
def test_without_pairs_of_samples_there_is_no_interval(tmp_path, change):
    whole = json.loads(json.dumps(BOTH))
    if change == "unpaired":
        whole["speed"]["paired"] = False
    elif change == "unmatched":
        del whole["samples"]["timings"][-1]
    else:
        del whole["samples"]
    rows = load_jobs(written(tmp_path, sweep(*SINGLES, whole)))
    time = next(one for one in attributions(rows) if one.metric.key == "ms_per_byte")
    (together,) = (effect for effect in time.effects if effect.kind == "interaction")
    assert together.change == pytest.approx(log(2.5 / 4))
    assert together.low is None


def test_the_steps_lead_from_the_unmodified_model_to_the_stack(tmp_path):
    rows = load_jobs(written(tmp_path, sweep(*SINGLES, BOTH)))
    for one in attributions(rows):
        change = sum(effect.change for effect in one.steps)
        assert one.metric.value(one.start, change) == pytest.approx(one.end)


def test_what_a_missing_stack_would_tell_is_left_out_and_its_command_is_said(tmp_path):
    typed = ["seed=3", "++methods.larosa.sparsity=0.4", "++methods.other.size=1"]
    jobs = [
        {**SINGLES[1], "overrides": ["methods=vattention", *typed]},
        {**BOTH, "overrides": ["methods=[larosa,vattention]", *typed]},
    ]
    rows = load_jobs(written(tmp_path, jobs))
    assert missing(rows[1], rows) == [("larosa",)]
    time = attributions(rows)[0]
    assert time.steps == ()
    assert [(one.kind, one.method) for one in time.effects] == [
        ("alone", "vattention"), ("in the stack", "larosa")
    ]  # fmt: skip
    text = build_report(tmp_path).read_text()
    command = "python evaluate.py seed=3 methods.larosa.sparsity=0.4 methods=larosa"
    assert f"- `{command}`\n" in text
    assert "ablation_waterfall.png" not in text
    content = json.loads((tmp_path / "report/comprehensive_benchmark_results.json").read_text())
    assert content["not_attributed"] == [{"label": "both", "missing": [["larosa"]]}]
    assert content["attribution"][0]["effects"][0]["change"] == pytest.approx(log(0.5))


@pytest.mark.parametrize("other", ["methods.larosa.sparsity=0.6", "threads=1", "seed=1"])
def test_parts_with_other_settings_are_not_parts(tmp_path, other):
    single = {**SINGLES[0], "overrides": ["methods=larosa", f"++{other}"]}
    whole = {**BOTH, "overrides": ["methods=[larosa,vattention]", "methods.larosa.sparsity=0.4"]}
    rows = load_jobs(written(tmp_path, [single, SINGLES[1], whole]))
    assert ("larosa",) in missing(rows[2], rows)


def test_of_several_sweeps_a_part_is_of_the_stack_s_own(tmp_path):
    first = written(tmp_path / "first", sweep(*SINGLES, BOTH))
    quicker = [{**one, "speed": {**one["speed"], "speedup": {
        "estimate": 3.0, "low": 2.9, "high": 3.1}}} for one in SINGLES]  # fmt: skip
    second = written(tmp_path / "second", [*quicker, BOTH])
    found = [one for one in attributions(load_jobs(first, second))
             if one.metric.key == "ms_per_byte"]  # fmt: skip
    alone = [one.effects[0].change for one in found]
    assert alone == pytest.approx([log(1 / 1.25), log(1 / 3)])
