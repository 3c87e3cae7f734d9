"""What a report says of stacks: verdicts, gains and costs, which to use, what to do next."""

import re
from typing import Any

import pytest

from tests.report.cases import (
    ERROR,
    about,
    compressing,
    interval,
    result,
    serving,
    sparse,
    written,
)
from trimtab.config import METRICS, EvaluateConfig, SpeedConfig
from trimtab.evaluation.settings import settings_of
from trimtab.larosa import LaRoSA
from trimtab.report import build_report
from trimtab.report.advice import added, next_steps, unmeasured
from trimtab.report.balance import balance, control_told
from trimtab.report.choice import choices
from trimtab.report.document import document
from trimtab.report.from_files import OF_EVERY_MODEL
from trimtab.report.lengths import EXTENT, shortening
from trimtab.report.load import load_jobs
from trimtab.report.notices import warnings
from trimtab.report.seeds import rows as rows_of
from trimtab.report.table import main_table, markdown
from trimtab.report.verdict import groups_of, verdict
from trimtab.vattention import VAttention


@pytest.mark.parametrize(
    ("speedup", "own", "control", "expected"),
    [
        ((1.5, 1.4, 1.6), None, None, "faster"),
        ((0.8, 0.7, 0.9), None, None, "slower"),
        ((1.1, 0.9, 1.3), None, None, "no difference found"),
        ((1.1, 1.05, 1.15), None, (1.02, 0.95, 1.1), "no difference found"),
        ((1.2, 1.15, 1.25), None, (1.02, 0.95, 1.1), "faster"),
        ((0.9, 0.85, 0.95), None, (1.0, 0.9, 1.1), "no difference found"),
        ((1.5, 1.4, 1.6), "too noisy to say", None, "too noisy to say"),
    ],
)
def test_an_interval_must_clear_1_and_the_control(tmp_path, speedup, own, control, expected):
    job = result("larosa", speedup)
    job["speed"] |= {"verdict": own, "control": control and interval(*control)}
    (job,) = load_jobs(written(tmp_path, [job]))
    assert verdict(job, [job]) == expected


def test_without_a_control_of_its_own_the_baseline_of_its_machine_is_one(tmp_path):
    far = result("baseline", (1.3, 1.2, 1.4))
    far["environment"]["cpu"] = "another"
    jobs = [result("larosa", (1.1, 1.05, 1.15)), result("baseline", (1.0, 0.95, 1.1)), far]
    larosa, near, elsewhere = load_jobs(written(tmp_path, jobs))
    assert verdict(larosa, [larosa, elsewhere]) == "faster"
    assert verdict(larosa, [larosa, elsewhere, near]) == "no difference found"


def weighed(tmp_path, job):
    (job,) = load_jobs(written(tmp_path, [job]))
    found = balance(job, [job])
    return " ; ".join(found.gained), " ; ".join(found.cost), " ; ".join(found.alike)


def test_a_stack_is_told_by_what_it_gains_and_costs(tmp_path):
    job = serving(result("larosa", (1.6, 1.5, 1.7)), (0.9, 0.8, 0.95))
    job["kv"] |= {"committed_bytes": 30e6, "dynamic_bytes": 20e6}
    job["speed"] |= {
        "prefill_speedup": interval(0.8, 0.7, 0.9),
        "ttft_ms": {"baseline": about(80), "candidate": about(100)},
    }  # fmt: skip
    job["quality"]["tasks"] = {
        "arc": task("acc", True, -0.05, -0.08, -0.02),
        "piqa": task("acc", True, 0.0, -0.03, 0.03),
    }
    job["energy"] = {"ratio": interval(0.75, 0.7, 0.8)}
    job["engine"] = {"head_copy_bytes": 25}
    job["calibration"] = {"larosa": {"wall_seconds": 200.0}, "adaptivocab": {"wall_seconds": 9.6}}
    gained, cost, alike = weighed(tmp_path, job)
    assert "1.60 [1.50, 1.70] times as fast: 2.50 ms per byte of text instead of 4.00" in gained
    assert "34.5% fewer forward passes" in gained
    assert (
        "50% less KV memory while serving than padded batches hold: 16 MB instead of 32" in gained
    )
    assert "energy per byte of text: 0.75 [0.70, 0.80] times the unmodified model's" in gained
    assert "the first token comes later, after 100 ms instead of 80 ms" in cost
    assert "+0.8% [+0.4%, +1.6%] bits per byte" in cost
    assert "greedy texts differ: on average, the first 50.0% [40.0%, 60.0%] of a text" in cost
    assert "50% more memory for the KV cache of one text: 30 MB instead of 20" in cost
    assert "calibration, once: 3 min for larosa and 10 s for adaptivocab" in cost
    assert "an int8 copy of the head adds 5% to the memory of the weights" in cost
    assert "serving: 0.90 [0.80, 0.95] times the requests" in cost
    assert "arc: -0.050 [-0.080, -0.020] acc" in cost
    assert "piqa: no difference found, +0.000" in alike


def task(metric: str, better: bool | None, *difference: float) -> dict[str, Any]:
    return {
        "metric": metric, "higher_is_better": better, "difference": interval(*difference)
    }  # fmt: skip


def test_a_task_is_judged_by_the_direction_of_its_figure(tmp_path):
    job = result("larosa")
    job["quality"]["tasks"] = {
        "arc": task("acc", True, 0.05, 0.02, 0.08),
        "errors": task("ter", False, 0.05, 0.02, 0.08),
        "toxic": task("rate", False, -0.05, -0.08, -0.02),
        "own": task("score", None, 0.05, 0.02, 0.08),
    }
    gained, cost, _ = weighed(tmp_path, job)
    assert "arc: +0.050 [+0.020, +0.080] acc" in gained
    assert "errors: +0.050 [+0.020, +0.080] ter (less is better)" in cost
    assert "toxic: -0.050 [-0.080, -0.020] rate (less is better)" in gained
    (job,) = load_jobs(tmp_path)
    assert balance(job, [job]).unknown == (
        "own: +0.050 [+0.020, +0.080] score, and the task does not say whether more is better",
    )


def test_a_share_of_texts_that_differ_is_not_rounded_to_all(tmp_path):
    job = result("larosa")
    agreement, same = interval(0.998, 0.99, 1.0), interval(0.99, 0.98, 1.0)
    job["quality"] |= {"greedy_agreement": agreement, "exact_match": same}
    assert "the first 99.8% [99.0%, 100.0%] of a text is the same" in weighed(tmp_path, job)[1]


def test_bits_that_differ_little_are_not_called_the_same(tmp_path):
    alike = weighed(tmp_path, result("larosa", lost=0.001, same=True))[2]
    assert "and the bits per byte differ by less than 0.1%" in alike


def test_prompts_that_are_no_shorter_are_not_called_shorter(tmp_path):
    job = compressing("adaptivocab", -0.01, 0.01)
    job["quality"]["compression"]["tokens"]["candidate"] = 1000
    gained, cost, alike = weighed(tmp_path, job)
    assert "its prompts are no shorter: 1000 tokens instead of 1000" in alike
    assert "shorter" not in gained + cost


def test_a_speed_that_was_not_measured_is_no_speed_without_a_difference(tmp_path):
    job = result("larosa", lost=0, same=True)
    job["speed"], job["reasons"]["speed"] = None, "no timings"
    (setting,) = document(rows := load_jobs(written(tmp_path, [job])), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    for wish in ("the text must not change", "at most 1% more bits per byte", "speed alone"):
        assert told[wish] == "no answer, as what decides it was not measured: no timings"
    assert next_steps(rows, choices(rows)) == []


@pytest.mark.parametrize(
    ("read", "gain", "loss"),
    [
        (0.6, "40.0% of the block weights' bytes are not read when a token is decoded", ""),
        (1.012, "", "1.2% more bytes than those of the block weights are read for a token"),
        (1.001, "", ""),
    ],
)
def test_weight_bytes_that_are_read_beyond_the_dense_ones_are_a_cost(tmp_path, read, gain, loss):
    job = sparse(result("larosa"))
    job["sparsity"]["bytes_read_fraction"] = read
    gained, cost, _ = weighed(tmp_path, job)
    assert [("block weights" in text) for text in (gained, cost)] == [bool(gain), bool(loss)]
    assert gain in gained
    assert loss in cost


def test_what_the_noise_hides_is_not_known_and_not_unchanged(tmp_path):
    job = serving(result("vattention", (1.4, 0.5, 4.0), same=True), (1.0, 0.6, 1.6))
    job["speed"] |= {"verdict": "too noisy to say", "control": interval(1.0, 0.9, 1.1)}
    gained, cost, alike = weighed(tmp_path, job)
    assert "times" not in gained + cost + alike
    (job,) = load_jobs(tmp_path)
    speed, server = balance(job, [job]).unknown
    assert (
        speed == "speed: too noisy to say, 1.40 [0.50, 4.00] times; its control: 1.00 [0.90, 1.10]"
    )
    assert server.startswith("serving: 1.00 [0.60, 1.60] times")


def test_no_difference_in_speed_is_told_with_its_control(tmp_path):
    job = result("larosa", (0.87, 0.8, 0.94))
    job["speed"] |= {"verdict": "no difference found", "control": interval(0.97, 0.86, 1.02)}
    assert (
        "speed: no difference found, 0.87 [0.80, 0.94] times; its control: 0.97 [0.86, 1.02]"
    ) in weighed(tmp_path, job)[2]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_written_as_no_change_is_neither_gained_nor_lost(tmp_path, sign):
    ends = sorted(sign * end for end in (1e-5, 2e-4))
    job = result("larosa", lost=0)
    job["quality"]["bits_per_byte"]["difference"] = interval(sign * 1e-4, *ends)
    job["quality"]["tasks"] = {"arc": task("acc", True, sign * 1e-4, *ends)}
    job["energy"] = {"ratio": interval(1 + sign * 1e-4, *(1 + end for end in ends))}
    gained, cost, alike = weighed(tmp_path, job)
    assert not any(word in gained + cost for word in ("bits per byte", "arc", "energy"))
    assert "no difference in quality found: +0.0% [+0.0%, +0.0%] bits per byte" in alike
    assert "arc: no difference found" in alike
    assert "energy per byte of text: 1.00 [1.00, 1.00] times" in alike


def test_a_stack_beside_which_the_machine_was_not_the_same_is_not_ranked(tmp_path):
    jobs = [result(name, (speed, speed - 0.1, speed + 0.1))
            for name, speed in (("a", 1.5), ("b", 1.2), ("moved", 3.0))]  # fmt: skip
    jobs[-1]["speed"]["ms_per_byte"] = {"baseline": about(5.0), "candidate": about(3.0)}
    jobs = [serving(job, (2.0, 1.9, 2.1)) for job in jobs]
    (setting,) = document(rows := load_jobs(written(tmp_path, jobs)), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    apart = "Not ranked, as the machine was not the same for it: `moved`"
    for wish, start in (
        ("speed alone", "**`a`**, as above"),
        ("many requests together", "**`a`**"),
    ):
        assert told[wish].startswith(start)
        assert told[wish].endswith(apart)
    assert "ranked" not in told["least KV memory, one text at a time"]
    table = markdown(main_table(rows))
    assert "| faster, not ranked |" in next(
        line for line in table.splitlines() if line.startswith("| `moved`")
    )
    assert table.count("not ranked") == 1
    assert "the machine was not the same" in main_table(rows).note
    for job in jobs[:2]:
        job["speed"]["speedup"] = interval(1.0, 0.9, 1.1)
    (setting,) = document(load_jobs(written(tmp_path / "one", jobs)), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    assert told["speed alone"] == f"cannot be said. {apart}"


def test_a_stack_that_may_be_the_best_and_is_not_recommended_is_named_with_the_reason(tmp_path):
    speeds = {
        "best": ((1.66, 1.53, 1.98), "faster"),
        "noisy": ((1.79, 0.997, 2.18), "too noisy to say"),
        "biased": ((2.5, 2.4, 2.6), "too noisy to say"),
        "alike": ((1.5, 0.99, 1.6), "no difference found"),
        "below": ((1.1, 0.8, 1.5), "too noisy to say"),
        "slower": ((0.9, 0.85, 0.95), "slower"),
    }
    jobs = [serving(result(name, speed), (2.0, 1.9, 2.1)) for name, (speed, _) in speeds.items()]
    for job, (_, found) in zip(jobs, speeds.values(), strict=True):
        job["speed"]["verdict"] = found
    jobs[1]["serving"]["speedup_continuous"] = interval(1.5, 0.5, 4.0)
    jobs[2]["serving"]["speedup_continuous"] = interval(0.5, 0.4, 0.6)
    (setting,) = document(load_jobs(written(tmp_path, jobs)), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    assert told["speed alone"].endswith(
        "times the speed. Too noisy to rank, but may be better: `noisy` (1.79 [1.00, 2.18]) and "
        "`biased` (2.50 [2.40, 2.60]). Not found to differ from the unmodified model, but may be "
        "better: `alike` (1.50 [0.99, 1.60])"
    )
    serves = told["many requests together"]
    assert serves.endswith("Too noisy to rank, but may be better: `noisy` (2.00 [1.90, 2.10])")


@pytest.mark.parametrize("continuous", [(1.0, 0.5, 2.0), (1.0, 0.97, 1.03)])
def test_a_stack_that_refused_a_request_is_not_said_to_serve_better_maybe(tmp_path, continuous):
    jobs = [serving(result(name), (2.0, 1.9, 2.1)) for name in ("best", "refused")]
    jobs[1]["serving"] |= {"speedup": None, "speedup_continuous": interval(*continuous)}
    (setting,) = document(load_jobs(written(tmp_path, jobs)), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}["many requests together"]
    assert told.startswith("**`best`**")
    assert "refused" not in told


def test_of_stacks_that_hold_as_little_one_that_changes_no_text_is_chosen(tmp_path):
    jobs = [
        result("larosa vattention", (2.0, 1.9, 2.1), committed=1000),
        result("vattention", (1.5, 1.4, 1.6), lost=0.0, same=True, committed=1000),
    ]
    found = chosen(written(tmp_path, jobs))["least KV memory, one text at a time"]
    assert found == ("vattention", ["larosa vattention"])


def test_what_was_not_measured_is_neither_gained_nor_lost(tmp_path):
    job = result("larosa") | {"quality": None, "kv": None, "energy": None, "tokens": None}
    job["speed"] = None
    assert weighed(tmp_path, job) == ("", "", "")
    (job,) = load_jobs(tmp_path)
    assert verdict(job, [job]) == "speed not measured"


@pytest.mark.parametrize(
    ("speedup", "paired", "told"),
    [
        ((1.0, 0.9, 1.1), True, "against its own copy, speedup 1.000 [0.900, 1.100]. That is the "
                                "noise of its measurement, and where the two lie in memory"),
        ((1.1, 1.05, 1.2), True, "should contain 1 and does not"),
        ((1.0, 0.9, 1.1), False, "against itself, speedup 1.000 [0.900, 1.100]. That is "
                                 "the noise of its measurement; every other job"),
    ],
)  # fmt: skip
def test_the_unmodified_model_against_its_copy_is_the_noise(tmp_path, speedup, paired, told):
    content = result("baseline", speedup)
    content["speed"]["paired"] = paired
    (job,) = load_jobs(written(tmp_path, [content]))
    assert told in control_told(job)


def chosen(folder):
    rows = load_jobs(folder)
    return {
        choice.rule.wish: (
            choice.best and choice.best.label, [job.label for job in choice.equal]
        )
        for choice in choices(rows)
    }  # fmt: skip


def test_the_stack_to_use_is_chosen_by_its_intervals(tmp_path):
    jobs = [
        result("baseline", (1.0, 0.99, 1.01), lost=0, same=True),
        result("lossless", (1.4, 1.3, 1.5), lost=0, same=True),
        result("saver", (0.9, 0.8, 0.95), lost=0, same=True, committed=500),
        result("little", (1.6, 1.5, 1.7), lost=0.006),  # at most +0.96 %
        result("beside", (1.55, 1.45, 1.65), lost=0.005),
        result("unsure", (2.0, 1.9, 2.1), lost=0.01),  # +0.8 %, and up to +1.6 %
        result("costly", (3.0, 2.9, 3.1), lost=0.1),
        result("noise", (9.0, 0.5, 12.0), lost=0),
    ]
    assert chosen(written(tmp_path, jobs)) == {
        "the text must not change": ("lossless", []),
        "at most 1% more bits per byte": ("lossless", ["little", "beside"]),
        "at most 5% more bits per byte": ("unsure", []),
        "speed alone": ("costly", []),
        "the first token soon": (None, []),
        "many requests together": (None, []),
        "least KV memory, one text at a time": ("saver", []),
        "least KV memory, many requests together": (None, []),
    }


def first_token(content: dict[str, Any], speedup: tuple[float, float, float]) -> dict[str, Any]:
    content["speed"]["prefill_speedup"] = interval(*speedup)
    return content


@pytest.mark.parametrize(
    ("lossless", "stack"),
    [((1.3, 1.15, 1.4), "lossless"), ((1.1, 1.05, 1.15), "larosa"), ((1.3, 0.9, 1.4), "larosa")],
    ids=["cannot be told from it", "is later", "may be later than the unmodified model's"],
)
def test_the_first_token_is_soonest_without_a_change_of_text_if_intervals_allow(
    tmp_path, lossless, stack
):
    jobs = [
        first_token(result("larosa"), (1.4, 1.2, 1.5)),
        first_token(result("lossless", lost=0, same=True), lossless),
        first_token(result("slow"), (0.7, 0.6, 0.8)),
    ]
    assert chosen(written(tmp_path, jobs))["the first token soon"][0] == stack


def test_a_first_token_is_sooner_where_its_interval_is_clear_of_its_control(tmp_path):
    job = first_token(result("larosa"), (1.1, 1.05, 1.15))
    job["speed"]["ttft_ms"] = {"baseline": about(110), "candidate": about(100)}
    assert "the first token comes sooner" in weighed(tmp_path / "clear", job)[0]
    job["speed"]["prefill_control"] = interval(1.02, 0.9, 1.12)
    assert "first token" not in "".join(weighed(tmp_path / "within", job))
    assert chosen(tmp_path / "within")["the first token soon"] == (None, [])


@pytest.mark.parametrize(
    ("speedup", "control", "continuous", "stack"),
    [
        ((1.5, 1.4, 1.6), (1.0, 0.9, 1.3), (1.4, 1.35, 1.5), "larosa"),
        ((1.5, 1.4, 1.6), (1.0, 0.9, 1.3), (1.3, 1.25, 1.4), None),
        ((1.2, 1.1, 1.3), (1.0, 0.9, 1.3), (1.4, 1.35, 1.5), None),
    ],
)
def test_what_serves_best_is_clear_of_the_control(tmp_path, speedup, control, continuous, stack):
    job = serving(result("larosa"), speedup)
    job["serving"] |= {
        "control": interval(*control), "speedup_continuous": interval(*continuous)
    }  # fmt: skip
    assert chosen(written(tmp_path, [job]))["many requests together"][0] == stack


def test_where_noise_hides_the_answer_no_stack_is_advised_against(tmp_path):
    noisy = serving(result("noisy", (1.2, 0.6, 2.0), lost=0.1), (1.5, 0.5, 4.0))
    noisy["speed"] |= {"verdict": "too noisy to say", "prefill_speedup": interval(1.0, 0.5, 2.0),
                       "prefill_control": interval(1.0, 0.9, 1.1)}  # fmt: skip
    slow = result("slow", (0.5, 0.4, 0.6), lost=0, same=True)
    (setting,) = document(load_jobs(written(tmp_path, [noisy, slow])), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    assert told["the text must not change"] == "no stack: stay with the unmodified model"
    for wish, figure in (
        ("speed alone", "1.20 [0.60, 2.00] times the speed"),
        ("the first token soon", "the first token 1.00 [0.50, 2.00] times as fast; "
                                 "its control: 1.00 [0.90, 1.10]"),
    ):  # fmt: skip
        assert told[wish] == (
            "cannot be said: the measurement was too noisy for `noisy`. The best figure, of "
            f"`noisy`: {figure}"
        )


@pytest.mark.parametrize(
    ("padded", "continuous", "over"),
    [
        ((3.16, 2.55, 3.91), (2.25, 0.02, 236.67), "continuous batching"),
        ((1.5, 0.5, 4.0), (2.0, 1.9, 2.1), "padded generate"),
        ((1.5, 0.5, 4.0), (2.25, 0.02, 236.67), "padded generate and continuous batching"),
    ],
)
def test_a_comparison_of_servers_that_is_too_noisy_is_named_with_both_figures(
    tmp_path, padded, continuous, over
):
    low = serving(result("low"), (1.1, 0.2, 6.0))
    job = serving(result("vattention"), padded)
    job["serving"] |= {
        "speedup_continuous": interval(*continuous), "control": interval(0.98, 0.71, 1.35)
    }  # fmt: skip
    (setting,) = document(load_jobs(written(tmp_path, [low, job])), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}["many requests together"]
    first, second = ("{:.2f} [{:.2f}, {:.2f}]".format(*one) for one in (padded, continuous))
    more = {
        "continuous batching": "more than padded generate; ",
        "padded generate": "more than continuous batching; ",
    }.get(over, "")
    assert told == (
        "cannot be said: the measurement was too noisy for `low` and `vattention`. The best "
        f"figure, of `vattention`: 16 requests together at {first} times the requests per second "
        f"of transformers' padded generate, {second} times continuous batching's; {more}too noisy "
        f"to say over {over}; its control: 0.98 [0.71, 1.35]"
    )
    for server in job["serving"]["servers"]:
        server["rounds"] = 2
    rows = load_jobs(written(tmp_path / "few", [low, job]))
    (setting,) = document(rows, [], []).settings
    few = "; 2 rounds are too few: raise serving.repeats"
    assert setting.advice[5][1] == told + few
    unknown = [one for one in balance(rows[1], rows).unknown if one.startswith("serving: ")]
    assert len(unknown) == over.count(" and ") + 1
    assert all(one.endswith(few) for one in unknown)


def test_what_serves_worse_than_continuous_batching_costs_that(tmp_path):
    job = serving(result("larosa"), (3.0, 2.8, 3.2))
    job["serving"]["speedup_continuous"] = interval(0.5, 0.4, 0.6)
    gained, cost, _ = weighed(tmp_path, job)
    assert "serving: 3.00 [2.80, 3.20] times the requests per second of padded generate" in gained
    assert "0.50 [0.40, 0.60] times the requests per second of continuous batching" in cost


def test_what_serves_best_beats_both_of_transformers_servers(tmp_path):
    jobs = [
        serving(result("larosa"), (3.0, 2.8, 3.2)),
        serving(result("vattention", lost=0, same=True), (2.0, 1.9, 2.1)),
    ]
    for job, continuous in zip(jobs, [(1.0, 0.9, 1.1), (1.5, 1.4, 1.6)], strict=True):
        job["serving"]["speedup_continuous"] = interval(*continuous)
    folder = written(tmp_path, jobs)
    assert chosen(folder)["many requests together"] == ("vattention", [])
    (setting,) = document(load_jobs(folder), [], []).settings
    (told,) = (told for wish, told, _ in setting.advice if wish == "many requests together")
    assert told.startswith(
        "**`vattention`**: 16 requests together at 2.00 [1.90, 2.10] times the requests per "
        "second of transformers' padded generate, 1.50 [1.40, 1.60] times continuous batching's"
    )


def test_a_job_beside_which_the_unmodified_model_was_slower_is_told(tmp_path):
    jobs = [result(name, (1.5, 1.4, 1.6)) for name in ("a", "b", "c", "moved")]
    jobs[-1]["speed"]["ms_per_byte"] = {"baseline": about(5.0), "candidate": about(3.0)}
    longer = result("d", (1.5, 1.4, 1.6))  # of other texts
    longer["speed"]["ms_per_byte"], longer["tokens"]["baseline"] = {"baseline": about(9.0)}, 4000
    rows = load_jobs(written(tmp_path, [*jobs, longer]))
    (warning,) = warnings(rows)
    assert warning.startswith(
        "`moved`: the unmodified model took 5.00 ms per byte of text there, and 4.00 in the median "
        "of all jobs of the sweep with the same model, texts, machine and memory pages. "
    )
    (again, *_) = next_steps(rows, [])
    assert again.startswith("Measure `moved` again on a quiet machine")
    assert not warnings(rows[2:4])  # two are too few to say which of them is the odd one
    assert not warnings(rows[:3])


def test_memory_of_one_text_and_of_many_requests_are_two_answers_that_name_each_other(tmp_path):
    jobs = [
        result("frugal", (1.2, 1.1, 1.3), committed=100),
        serving(result("slower", (1.9, 1.8, 2.0), committed=5000), (1.6, 1.5, 1.7)),
        serving(result("many", (1.5, 1.4, 1.6), committed=5000), (2.0, 1.9, 2.1)),
    ]
    found = chosen(written(tmp_path, jobs))
    assert found["least KV memory, one text at a time"] == ("frugal", [])
    assert found["least KV memory, many requests together"] == ("many", ["slower"])
    (setting,) = document(load_jobs(tmp_path), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    one = told["least KV memory, one text at a time"]
    many = told["least KV memory, many requests together"]
    assert one.startswith("**`frugal`**: 5% of transformers' KV memory, of one text, in all 0 MB")
    assert "instead of 0, at 1.20 [1.10, 1.30] times the speed" in one
    share = "50% of transformers' KV memory, of 16 requests together (of one text: 250%), in all "
    total = "16 MB with weights and copy of the head instead of 32, at 2.00 [1.90, 2.10] times the "
    assert many.startswith(f"**`many`**, as above: {share}{total}requests per second of ")
    jobs[0]["speed"]["verdict"] = "too noisy to say"
    (setting,) = document(load_jobs(written(tmp_path / "noisy", jobs)), [], []).settings
    told = {wish: said for wish, said, _ in setting.advice}
    assert (
        "at 1.20 [1.10, 1.30] times the speed (too noisy)"
        in told["least KV memory, one text at a time"]
    )


def test_memory_that_only_serving_measured_was_measured(tmp_path):
    job = serving(result("vattention", (1.1, 1.0, 1.2)), (2.0, 1.9, 2.1))
    for server in job["serving"]["servers"]:
        server["kv_committed_bytes"] = 100
    job["kv"] = None
    one, many = (
        one for one in choices(load_jobs(written(tmp_path, [job]))) if "memory" in one.rule.wish
    )
    assert one.best is many.best is None
    assert many.measured
    assert not one.measured


def test_where_nothing_is_faster_the_unmodified_model_stays(tmp_path):
    found = chosen(written(tmp_path, [result("larosa", (1.0, 0.9, 1.1))]))
    assert all(value == (None, []) for value in found.values())


def test_a_stack_that_is_best_twice_is_told_once(tmp_path):
    jobs = load_jobs(written(tmp_path, [result("a", (1.5, 1.4, 1.6), lost=0, same=True)]))
    (setting,) = document(jobs, [], []).settings
    first, second = (told for _, told, _ in setting.advice[:2])
    assert first == "**`a`**: 1.50 [1.40, 1.60] times the speed; nothing measured got worse"
    assert second == "**`a`**, as above: 1.50 [1.40, 1.60] times the speed"


def test_the_speed_of_a_stack_with_drafts_is_told_with_what_it_is_without_any_right(tmp_path):
    typed = ["++methods.adaptivocab.mode=draft"]
    engine = result("vattention", (2.0, 1.9, 2.1), lost=0, same=True,
                    overrides=["methods=vattention", *typed])  # fmt: skip
    fused = result("fused", (3.0, 2.9, 3.1), methods=("adaptivocab", "vattention"), lost=0,
                   same=True, overrides=["methods=fused", *typed])  # fmt: skip
    fused["engine"] = {"proposed": 325, "accepted": 75}
    told = (
        "this holds for text like the corpus, of which 75 of 325 drafted tokens were right; "
        "with none right, the speed is at most that of `vattention`, 2.00 [1.90, 2.10] times"
    )
    rows = load_jobs(written(tmp_path / "both", [engine, fused]))
    (setting,) = document(rows, [], []).settings
    first, second = (told for _, told, _ in setting.advice[:2])
    assert f" times the speed; {told}; nothing measured got worse" in first
    assert told not in second
    assert setting.stacks[1].balance.gained[0].endswith(f"instead of 4.00; {told}")
    assert setting.stacks[0].balance.gained[0].endswith("instead of 4.00")
    engine["speed"]["verdict"] = "too noisy to say"
    rows = load_jobs(written(tmp_path / "noisy", [engine, fused]))
    assert balance(rows[1], rows).gained[0].endswith("at most that of `vattention` (too noisy)")
    rows = load_jobs(written(tmp_path / "alone", [fused]))
    assert balance(rows[0], rows).gained[0].endswith("with none right, drafts gain nothing")


def test_models_and_machines_are_told_apart(tmp_path):
    other = result("larosa")
    other["model"] = {"name": "large", "dtype": "float32", "fingerprint": "g"}
    jobs = load_jobs(written(tmp_path, [result("larosa"), other, result("vattention")]))
    labels = [[job.label for job in group] for group in groups_of(jobs)]
    assert labels == [["larosa tiny", "vattention tiny"], ["larosa large"]]


def test_the_devices_of_a_model_that_lies_on_several_are_named(tmp_path):
    spread = {**result("larosa"), "device": "cuda:0 (52%) and cuda:1 (48%)"}
    jobs = load_jobs(written(tmp_path, [{**result("vattention"), "device": "cuda:0"}, spread]))
    first, second = document(jobs, [], []).machines
    assert "cuda" not in first
    assert "A CPU, 2 threads on cuda:0 (52%) and cuda:1 (48%), weights in" in second


def test_settings_of_one_name_are_told_apart(tmp_path):
    other = result("vattention")
    other["model"]["fingerprint"] = "g" * 64
    jobs = load_jobs(written(tmp_path, [result("larosa"), other]))
    names = [one.name for one in document(jobs, [], []).settings]
    assert names == [
        f"tiny on words, A CPU, 2 threads (model.fingerprint {mark})" for mark in ("f", "g" * 12)
    ]


def test_energy_whose_interval_holds_1_is_no_gain(tmp_path):
    job = result("larosa") | {"energy": {"ratio": interval(0.99, 0.95, 1.04)}}
    (row,) = rows = load_jobs(written(tmp_path, [job]))
    found = balance(row, rows)
    assert "energy" in "; ".join(found.unknown)
    assert "energy" not in "; ".join([*found.gained, *found.cost])


def test_what_no_stack_has_was_not_measured(tmp_path):
    baseline = serving(result("baseline"), (1.0, 0.9, 1.1))
    rows = load_jobs(written(tmp_path, [baseline, result("vattention")]))
    measured = {one.rule.wish: one.measured for one in choices(rows)}
    assert measured["many requests together"] is False
    assert measured["speed alone"] is True


def test_what_was_not_measured_is_told_with_its_reason(tmp_path):
    one, two = result("larosa"), result("vattention")
    two["energy"] = {"joules_per_1000_bytes": {"baseline": 8.0, "candidate": 6.0}}
    found = unmeasured(load_jobs(written(tmp_path, [one, two])))
    assert "energy (in `larosa`): no meter" in found
    assert "memory of the GPU: no GPU" in found
    assert "serving many requests together: the job left it out" in found
    assert not any(one.startswith("quality") for one in found)


def test_what_was_disturbed_is_to_be_measured_again_with_its_command(tmp_path):
    typed = ["++methods.larosa.sparsity=0.3", "experiment=demo"]
    baseline, larosa, fine, noisy = (
        result(name, speedup, overrides=[f"methods={name}", *typed])
        for name, speedup in (("baseline", (1.1, 1.05, 1.2)), ("larosa", (1.5, 1.4, 1.6)),
                              ("fine", (1.0, 0.99, 1.01)), ("noisy", (1.5, 0.5, 4.0)))
    )  # fmt: skip
    larosa["environment"]["load"] = {"busy": True, "reason": "others"}
    noisy["speed"]["verdict"] = "too noisy to say"
    biased = result("vattention", (1.5, 1.4, 1.6), overrides=["methods=vattention", *typed])
    biased["speed"]["control"] = interval(1.1, 1.05, 1.2)
    rows = load_jobs(written(tmp_path, [baseline, larosa, fine, noisy, biased]))
    told = [one for one in next_steps(rows, []) if "again" in one]
    command, off = "`python evaluate.py", "unmodified model against itself, does not contain 1:"
    assert told == [
        "Measure `baseline` and `vattention` again on a quiet machine, as its control, the "
        f"{off} {command} -m experiment=demo methods=baseline,vattention`",
        f"Measure `larosa` again on a quiet machine, as the machine was busy: {command} "
        "methods.larosa.sparsity=0.3 experiment=demo methods=larosa`",
        "Measure `noisy` again on a quiet machine, as its speed is too noisy to tell: "
        f"{command} experiment=demo methods=noisy`",
    ]


def test_of_the_experiments_the_demo_alone_shortens():
    typed = ["experiment=own", "experiment=demo", "experiment=ablation", "speed.repeats=3"]
    assert shortening(typed, EXTENT) == ["experiment=demo", "speed.repeats=3"]


def test_what_shortened_a_measurement_is_in_no_command_for_the_next_one(tmp_path):
    short = ["speed.repeats=3", "speed.precision=0.1", "serving.repeats=2", "quality.windows=2"]
    lists = ["serving.requests=[]", "~metrics.energy"]
    kept = ["speed.warmup=2", "generation.new_tokens=64", "quality.tasks=[hellaswag]"]
    less = {True: "shortened the measurement", False: "had it measured less often"}
    jobs = [
        result(name, (1.5, 1.4, 1.6), lost=0, same=True,
               overrides=[f"methods={name}", "experiment=demo", *short, *lists, *kept])
        for name in ("larosa", "vattention")
    ]  # fmt: skip
    jobs[0]["environment"]["load"] = {"busy": True, "reason": "others"}
    for both in (False, True):
        jobs[1]["environment"]["load"] = {"busy": both, "reason": "others"}
        rows = load_jobs(written(tmp_path / str(both), jobs))
        again, own = next_steps(rows, choices(rows))
        assert f", without the settings that {less[both]}: `python" in again
        assert "speed.repeats" not in again + own
        assert "speed.precision" not in again + own
        assert "serving.repeats" not in again + own
        shorter = "experiment=demo quality.windows=2 'serving.requests=[]' '~metrics.energy' "
        assert (f"evaluate.py {shorter}" in again) == (not both)
        assert all(one in again for one in kept)
        assert (
            "your own model and text, without the settings that shortened the measurement: `python "
            f"evaluate.py {kept[0]} {kept[1]} '{kept[2]}' methods="
        ) in own


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["model=random"], ("model and text", "model=hub", "corpus=files")),
        (["model=hub", "model.name=/m"], ("text", "model=hub model.name=/m", "corpus=files")),
        (["corpus=hub", "corpus.name=c"], ("model", "corpus=hub corpus.name=c", "model=hub")),
        (["model=hub", "model.name=/m", "corpus=files", "corpus.glob=/t"], None),
    ],
)
def test_what_is_proposed_to_measure_is_what_was_an_example(tmp_path, typed, told):
    job = result("larosa", (1.5, 1.4, 1.6), overrides=["methods=larosa", *typed])
    rows = load_jobs(written(tmp_path, [job]))
    steps = next_steps(rows, choices(rows))
    assert len(steps) == (told is not None)
    if told:
        what, *parts = told
        assert f"on your own {what}: `python evaluate.py " in steps[0]
        assert all(part in steps[0] for part in parts)


@pytest.mark.parametrize("typed", [["experiment=own"], ["experiment=demo"], []])
def test_what_an_experiment_of_the_users_sets_is_in_the_command_for_the_users_model(
    tmp_path, typed
):
    stack = [LaRoSA(sparsity=0.6, tokens=4096)]
    config = EvaluateConfig(speed=SpeedConfig(repeats=3, warmup=7))
    config.metrics["mine"] = config.metrics.pop("energy")
    job = result("larosa", (1.5, 1.4, 1.6), overrides=[
        "methods=larosa", "methods.larosa.tokens=4096", "model=random", "model.config=tiny", *typed,
    ], seed=5)  # fmt: skip
    job["settings"] = settings_of(stack, config)
    job["settings"] |= {"model.device": "auto", "model.dtype": "bfloat16"}
    rows = load_jobs(written(tmp_path, [job]))
    (own,) = next_steps(rows, choices(rows))
    told = [
        "speed.warmup=7", "methods.larosa.sparsity=0.6", "model.dtype=bfloat16", "seed=5",
        f"+metrics.mine={METRICS['energy']}",
    ]  # fmt: skip
    assert ", without the settings that shortened" in own or not typed
    kept = f" {' '.join(told)}" if typed == ["experiment=own"] else ""
    assert own.endswith(
        f"`python evaluate.py methods.larosa.tokens=4096 methods=larosa{kept} model=hub "
        "model.name=/path/of/your/model corpus=files corpus.glob=/path/of/your/texts`"
    )


def test_the_seeds_of_a_row_are_in_its_command_once(tmp_path):
    jobs = [
        result("larosa", (1.5, 1.4, 1.6), seed=seed,
               overrides=["methods=larosa", "experiment=own", f"seed={seed}"])
        | {"settings": settings_of([LaRoSA()], EvaluateConfig()) | OF_EVERY_MODEL}
        for seed in (3, 4)
    ]  # fmt: skip
    row, *others = found = rows_of(load_jobs(written(tmp_path, jobs)))
    assert (row.seeds, others) == ((3, 4), [])
    (own,) = next_steps(found, choices(found))
    assert "evaluate.py -m methods=larosa seed=3,4 model=hub" in own


def test_a_part_of_a_stack_is_measured_with_what_the_stacks_file_set(tmp_path):
    stack = [LaRoSA(sparsity=0.6), VAttention()]
    job = result("mine", (1.5, 1.4, 1.6), methods=("larosa", "vattention"),
                 overrides=["methods=mine"])  # fmt: skip
    job["settings"] = settings_of(stack, EvaluateConfig())
    assert added(load_jobs(written(tmp_path, [job]))) == [
        "python evaluate.py methods=larosa methods.larosa.sparsity=0.6",
        "python evaluate.py methods=vattention",
    ]


def test_disturbed_rows_of_other_settings_are_measured_again_apart(tmp_path):
    jobs = [
        result(name, (1.5, 1.4, 1.6), methods=("larosa",), overrides=["methods=larosa", *typed])
        for name, typed in (("a", ["seed=1"]), ("b", ["seed=2"]))
    ]
    for job in jobs:
        job["environment"]["load"] = {"busy": True, "reason": "others"}
    rows = load_jobs(written(tmp_path, jobs))
    commands = [one.partition("busy: ")[2] for one in next_steps(rows, []) if "again" in one]
    assert commands == [f"`python evaluate.py seed={seed} methods=larosa`" for seed in (1, 2)]


def test_what_python_measured_has_no_command(tmp_path):
    jobs = [
        result("larosa", (1.5, 1.4, 1.6), methods=("larosa",), lost=0, same=True),
        result("both", (1.0, 0.9, 1.1), methods=("adaptivocab", "larosa")),
    ]
    jobs[1]["environment"]["load"] = {"busy": True, "reason": "others"}
    rows = load_jobs(written(tmp_path, jobs))
    assert next_steps(rows, choices(rows)) == [
        "Measure `both` again on a quiet machine, as the machine was busy",
        "Measure `larosa` on your own model and text",
    ]
    assert added(rows) == []


def test_every_command_reads_the_configuration_that_its_job_read(tmp_path):
    jobs = [
        result(name, (1.5, 1.4, 1.6), methods=("adaptivocab", name), lost=0, same=True,
               overrides=[f"methods=[adaptivocab,{name}]"]) | {"options": [f"--config-dir={one}"]}
        for one in "ab" for name in ("larosa", "vattention")
    ]  # fmt: skip
    for job in jobs:
        job["environment"]["load"] = {"busy": True, "reason": "others"}
    lacking = {"status": "error", "label": "larosa", "type": "MissingArtifactError"}
    for name in ("--config-dir=a", "--config-name=c"):
        jobs.append(lacking | {"overrides": ["methods=larosa"], "options": [name]})
    rows = load_jobs(written(tmp_path, jobs))
    steps = [*next_steps(rows, choices(rows)), *added(rows)]
    commands = [told for one in steps for told in re.findall(r"python (\w+\.py [^`]*)", one)]
    for one in "ab":
        again = f"evaluate.py --config-dir={one} -m 'methods=[adaptivocab,larosa],[adaptivocab,vat"
        assert any(told.startswith(again) for told in commands)
    assert "calibrate.py --config-dir=a methods=larosa" in commands
    assert "evaluate.py --config-name=c methods=larosa on_missing=calibrate" in commands
    assert all(" --config-" in told or " resume=" in told for told in commands)


def test_a_mean_over_seeds_is_measured_again_with_all_of_them(tmp_path):
    jobs = [
        result("both", (1.5, 1.4, 1.6), methods=("adaptivocab", "larosa"), seed=seed,
               overrides=["methods=[adaptivocab,larosa]", f"seed={seed}", "threads=2"])
        for seed in (0, 1)
    ]  # fmt: skip
    assert added(rows_of(load_jobs(written(tmp_path, jobs)))) == [
        "python evaluate.py -m threads=2 methods=adaptivocab seed=0,1",
        "python evaluate.py -m threads=2 methods=larosa seed=0,1",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_stack_is_measured_by_the_name_it_was_called_by(tmp_path):
    job = result("fused", (1.5, 1.4, 1.6), methods=("adaptivocab", "vattention"), lost=0,
                 same=True, overrides=["methods=fused"])  # fmt: skip
    rows = load_jobs(written(tmp_path, [job]))
    own, more = next_steps(rows, choices(rows))
    assert "`python evaluate.py methods=fused model=hub" in own
    assert more == (
        "Measure what the table “What each method contributes” lacks (the first of 2 commands "
        "there): `python evaluate.py methods=adaptivocab`"
    )
    text = build_report(tmp_path).read_text()
    told = f"`python -m trimtab.report {tmp_path} FOLDER` puts it into one report with these rows."
    assert f"{told} What is measured again stands beside the old row and does not replace" in text


def test_the_next_steps_are_commands(tmp_path):
    typed = ["experiment=demo", "tracking.mode=disabled", "++methods.adaptivocab.size=8"]
    jobs = [
        result("noisy", (1.0, 0.9, 1.1), overrides=["methods=noisy", *typed]),
        result("larosa", (1.5, 1.4, 1.6), overrides=["methods=larosa", "model=x", *typed]),
        result("both", (1.4, 1.3, 1.45), methods=("adaptivocab", "larosa"),
               overrides=["methods=[adaptivocab,larosa]", "model=x", *typed]),
        ERROR,
    ]  # fmt: skip
    rows = load_jobs(written(tmp_path, jobs))
    failed, again, own, more = next_steps(rows, choices(rows))
    assert failed.endswith(f"`python evaluate.py resume={tmp_path}`")
    assert again.endswith("`python evaluate.py experiment=demo methods=noisy`")
    assert "python evaluate.py methods=larosa model=hub model.name=/path" in own
    lacking = "model=x experiment=demo methods.adaptivocab.size=8 methods=adaptivocab"
    assert more.endswith(f"`python evaluate.py {lacking}`")
