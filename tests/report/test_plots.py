"""Plots: titles that are true of the figures, and nothing drawn that is not there."""

from itertools import combinations, pairwise

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tests.report.cases import (
    about,
    budgeted,
    compressing,
    interval,
    result,
    serving,
    sparse,
    written,
)
from trimtab.report import build_report
from trimtab.report.attribution import attributions
from trimtab.report.choice import choices
from trimtab.report.columns import CHARTS, SPEEDUP
from trimtab.report.load import load_jobs
from trimtab.report.plots import compression, pareto, single, waterfall
from trimtab.report.plots.comparison import comparison, comparison_panel, finding
from trimtab.report.plots.dashboard import dashboard
from trimtab.report.plots.panel import Row, Rows
from trimtab.report.plots.paper import COLOURS, svg, write_png
from trimtab.report.plots.places import Label, beside, spread
from trimtab.report.plots.serving import serving_plot
from trimtab.report.table import markdown
from trimtab.report.verdict import groups_of, names_of

SPEED, THROUGHPUT, TOKENS, MEMORY = CHARTS


def loaded(folder, *jobs):
    return load_jobs(written(folder, list(jobs)))


@pytest.mark.parametrize(
    ("chart", "jobs", "title"),
    [
        (SPEED, [("a", (1.5, 1.4, 1.6)), ("b", (1.2, 1.1, 1.3))],
         "Fastest: a, 1.50 times the unmodified model"),
        (SPEED, [("a", (1.5, 1.4, 1.6)), ("b", (1.4, 1.3, 1.5)), ("c", (1.3, 1.2, 1.39))],
         "Fastest: a, 1.50 times the unmodified model; cannot be told from it: b"),
        (SPEED, [(name, (1.5 - 0.1 * at, 1.1, 1.6)) for at, name in enumerate("abcd")],
         "Fastest: a, 1.50 times the unmodified model; cannot be told from it: b and 2 more"),
        (SPEED, [("a", (1.5, 0.9, 1.6))],
         "No stack is measurably faster than the unmodified model"),
        (SPEED, [("baseline", (1.5, 1.4, 1.6))],
         "The unmodified model against itself: no stack was measured"),
        (THROUGHPUT, [("a", (1.5, 1.4, 1.6))],
         "Most tokens per second while decoding: a, 15.0"),
        (THROUGHPUT, [("a", (1.5, 0.9, 1.6))],
         "No stack is measurably faster than the unmodified model"),
        (TOKENS, [("a", (1, 0.9, 1.1)), ("b", (1, 0.9, 1.1))],
         "Fewest tokens for the same text: a and b, 877"),
        (MEMORY, [("a", (1, 0.9, 1.1))],
         "No stack holds a smaller KV cache for one text than transformers' dynamic cache"),
    ],
)  # fmt: skip
def test_a_title_says_what_the_figures_say(tmp_path, chart, jobs, title):
    found = loaded(tmp_path, *(result(label, speedup) for label, speedup in jobs))
    assert finding(chart, found) == title


def test_a_title_is_of_the_first_panel_in_which_a_stack_is_better(tmp_path):
    job = result("drafting")
    job["tokens"]["candidate"] = 1000
    found = loaded(tmp_path, job)
    assert finding(TOKENS, found) == (
        "Fewest forward passes for the same text: drafting, 131; "
        "no stack is better in: tokens, prompts and outputs"
    )


def test_a_stack_that_is_faster_with_fewer_tokens_has_the_most_texts(tmp_path):
    job = result("merging", (1.5, 1.4, 1.6))
    job["speed"] |= {"decode_tokens_per_s": {"baseline": about(10.0), "candidate": about(8.0)},
                     "texts_per_s": {"baseline": about(2.0), "candidate": about(3.0)}}  # fmt: skip
    found = loaded(tmp_path, job)
    assert finding(THROUGHPUT, found) == (
        "Most texts per second, one at a time: merging, 3.00; "
        "no stack is better in: decoding, tokens/s"
    )


@pytest.mark.parametrize(
    ("section", "changed"),
    [("model", {"fingerprint": "g"}), ("corpus", {"digest": "e"}), ("tokens", {"baseline": 4000}),
     ("environment", {"cpu": "Another CPU"})],
)  # fmt: skip
def test_a_title_ranks_no_rows_that_do_not_compare(tmp_path, section, changed):
    jobs = [serving(result("a", (1.5, 1.4, 1.6), committed=1000), (1.2, 1.1, 1.3)) for _ in "ab"]
    jobs[1]["label"] = "b"
    jobs[1][section] |= changed
    found = loaded(tmp_path, *jobs)
    for chart, series in ((SPEED, "speedup per byte of text"), (THROUGHPUT, "decoding, tokens/s"),
                          (MEMORY, "KV cache held for one text, MB")):  # fmt: skip
        assert finding(chart, found) == (
            f"Better than the unmodified model: {found[0].label} and {found[1].label} ({series}); "
            "not ranked, as models, machines, texts or their lengths differ"
        )


@pytest.mark.parametrize("others", [1.5, 1.0])
def test_a_title_ranks_no_row_that_the_machine_was_not_the_same_for(tmp_path, others):
    jobs = [serving(result(name, (speed, speed - 0.1, speed + 0.1)), (speed, 0.95 * speed, 4.0))
            for name, speed in (("a", others), ("b", others), ("moved", 3.0))]  # fmt: skip
    jobs[-1]["speed"]["ms_per_byte"] = {"baseline": about(9.0), "candidate": about(3.0)}
    found = loaded(tmp_path, *jobs)
    plots = pareto.quality_plot(found, ""), serving_plot(found, "")
    titles = [finding(SPEED, found), *(plot.title for plot in plots if plot is not None)]
    if others > 1:
        assert titles[0] == "Fastest: a and b, 1.50 times the unmodified model; not ranked: moved"
        assert titles[1].endswith("than a and b; not ranked: moved")
        assert titles[2].startswith("a answers 1.50")
        assert titles[2].endswith("; not ranked: moved")
    else:
        why = "not ranked, as the machine was not the same for them"
        assert titles[0].startswith("Better than the unmodified model: moved (speedup per byte")
        assert titles[0].endswith(why)
        assert titles[1].startswith("No stack that is ranked is faster than the unmodified model")
        assert titles[2] == f"More requests per second than padded generate: moved; {why}"


def test_what_is_not_ranked_is_named_in_titles_where_it_may_be_best_and_marked_in_panels(tmp_path):
    speeds = {"a": (1.66, 1.53, 1.98), "noisy": (1.79, 0.997, 2.18), "below": (1.1, 0.8, 1.5)}
    jobs = [serving(result(name, speed), speed) for name, speed in speeds.items()]
    for job in jobs[1:]:
        job["speed"]["verdict"] = "too noisy to say"
    found = loaded(tmp_path, *jobs)
    assert finding(SPEED, found).endswith(" the unmodified model; too noisy: noisy")
    quality, served = pareto.quality_plot(found, ""), serving_plot(found, "")
    assert quality is not None
    assert served is not None
    assert quality.title.endswith("than a; too noisy: noisy")
    assert served.title.endswith(" of padded generate; too noisy: noisy")
    assert all(plot.note.startswith("Too noisy: noise hides") for plot in (quality, served))
    for panel in (comparison_panel(SPEEDUP, found), quality.panels[0], served.panels[0]):
        assert panel is not None
        axes = Figure().add_axes((0, 0, 1, 1))
        panel.draw(axes)
        texts = {one.get_text().replace("\n", " ") for one in axes.texts}
        assert texts >= {"a", "noisy (too noisy)", "below (too noisy)"}
    for counted in (comparison_panel(MEMORY.panels[1], found), served.panels[2]):
        assert counted is not None
        counted.draw(axes := Figure().add_axes((0, 0, 1, 1)))
        assert not any("too noisy" in one.get_text() for one in axes.texts)


def test_a_row_that_is_not_ranked_and_one_that_is_too_noisy_are_marked_by_their_names(tmp_path):
    jobs = [result(name, (1.5, 1.4, 1.6)) for name in ("a", "b", "moved", "noisy")]
    jobs[2]["speed"]["ms_per_byte"] = {"baseline": about(9.0), "candidate": about(6.0)}
    jobs[3]["speed"]["verdict"] = "too noisy to say"
    found = loaded(tmp_path, *jobs)
    chart = comparison(SPEED, found, "note")
    assert chart is not None
    assert chart.title.endswith("; not ranked: moved; too noisy: noisy")
    assert "Not ranked: the machine was not the same" in chart.note
    assert "Too noisy: noise hides" in chart.note
    chart.panels[0].draw(axes := Figure().add_axes((0, 0, 1, 1)))
    texts = {one.get_text() for one in axes.texts}
    assert texts >= {"a", "b", "moved (not ranked)", "noisy (too noisy)"}


def test_a_label_leaves_room_for_what_is_written_at_its_right():
    label = "[larosa,vattention] (not ranked)"
    for told, lines in (("1.79 [1.00, 2.18]", 1), ("10.0 [7.2, 11.8] → 28.4 [14.4, 29.7]", 2)):
        Rows([Row(label, told)]).label(axes := Figure().add_axes((0, 0, 1, 1)))
        assert len(axes.texts) == lines + 1


def test_kv_caches_of_requests_of_other_lengths_are_not_ranked(tmp_path):
    jobs = [serving(result(name), (1.2, 1.1, 1.3)) for name in "ab"]
    for job, size in zip(jobs, (100, 200), strict=True):
        job["samples"]["serving_requests"] = [{"requests": 8, "prompt_bytes": size, "bytes": 9}]
    found = loaded(tmp_path, *jobs)
    assert "(KV cache held while serving, MB); not ranked" in finding(MEMORY, found)
    assert finding(MEMORY, found[:1]) == (
        "Smallest KV cache while serving: a, 16.0 MB; "
        "no stack is better in: KV cache held for one text, MB"
    )


def test_a_panel_holds_the_jobs_that_have_its_figure_and_their_numbers(tmp_path):
    lacking = result("lacking")
    lacking["speed"] = None
    jobs = loaded(tmp_path, result("a", (1.5, 1.4, 1.6)), lacking)
    panel = comparison_panel(SPEEDUP, jobs)
    assert panel is not None
    assert "| `a` | 1.50 [1.40, 1.60] |" in markdown(panel.table)
    assert "lacking" not in markdown(panel.table)
    assert comparison(SPEED, jobs[1:], "note") is None
    chart = comparison(SPEED, jobs, "note")
    assert chart is not None
    assert [one.title for one in chart.panels] == ["speedup per byte of text (more is better)"]


def test_a_panel_in_which_nothing_differs_from_the_unmodified_model_is_not_drawn(tmp_path):
    job = result("drafting")
    job["tokens"]["candidate"] = 1000
    jobs = loaded(tmp_path, job)
    assert comparison_panel(TOKENS.panels[0], jobs) is None
    chart = comparison(TOKENS, jobs, "note")
    assert chart is not None
    assert [one.title for one in chart.panels] == ["forward passes (less is better)"]
    assert chart.title.endswith("; no stack is better in: tokens, prompts and outputs")


def test_the_line_of_no_change_runs_through_no_label(tmp_path):
    jobs = [result(name, (1.5, 1.4, 1.6)) for name in "ab"]
    panel = comparison_panel(SPEEDUP, loaded(tmp_path, *jobs))
    assert panel is not None
    panel.draw(axes := Figure().add_axes((0, 0, 1, 1)))
    upright = [line for line in axes.lines if list(line.get_xdata()) == [1, 1]]
    assert len(upright) == 2
    assert all(abs(high - low) < 0.21 for low, high in (line.get_ydata() for line in upright))


def test_the_front_is_what_nothing_beats_in_both(tmp_path):
    jobs = loaded(
        tmp_path,
        result("baseline", (1.0, 0.9, 1.1), lost=0),
        result("lossless", (1.5, 1.4, 1.6), lost=0),
        result("worse", (1.4, 1.3, 1.5), lost=0.01),
        result("quick", (2.0, 1.9, 2.1), lost=0.01),
        result("slow", (0.9, 0.8, 0.95), lost=0),
    )
    assert [job.label for job in pareto.front(jobs, pareto.SPEED)] == ["lossless", "quick"]
    plot = pareto.quality_plot(jobs, "")
    assert plot is not None
    assert plot.title == (
        "Nothing is both faster and better in bits per byte than lossless and quick"
    )
    assert len(plot.panels) == 1  # all hold the same KV memory


def test_every_model_has_a_front_of_its_own(tmp_path):
    other = result("b", (1.2, 1.1, 1.3), lost=0.02)
    other["model"]["fingerprint"] = "g"
    jobs = loaded(tmp_path, result("a", (1.5, 1.4, 1.6)), other)
    assert len(pareto.front(jobs, pareto.SPEED)) == 2
    plot = pareto.quality_plot(jobs, "")
    assert plot is not None
    assert plot.title.startswith("Nothing of the same model, text and machine is both faster and")


def test_memory_is_weighed_against_quality_where_stacks_differ_in_it(tmp_path):
    jobs = loaded(
        tmp_path, result("a", lost=0.01, committed=500), result("b", lost=0.02, committed=1000)
    )
    plot = pareto.quality_plot(jobs, "")
    assert plot is not None
    assert [panel.title for panel in plot.panels] == [
        "quality against speed (● on the front)",
        "quality against KV memory of one text (● on the front)",
    ]
    assert [job.label for job in pareto.front(jobs, pareto.MEMORY)] == ["a"]


def test_rounding_puts_nothing_on_the_front(tmp_path):
    stacks = (("a", 500, 1e-5), ("b", 500, 0), ("more memory", 2000, -1e-5))
    jobs = loaded(tmp_path, *(result(name, lost=lost, committed=of) for name, of, lost in stacks))
    assert [job.label for job in pareto.front(jobs, pareto.MEMORY)] == ["a", "b"]


@pytest.mark.parametrize(
    ("models", "headings", "wish"),
    [
        (1, [], "speed alone"),
        (2, ["model-0 on words, A CPU, 2 threads", "model-1 on words, A CPU, 2 threads"],
         "model-1 on words, A CPU, 2 threads: speed alone"),
    ],
)  # fmt: skip
def test_the_summary_of_several_models_has_a_heading_for_each(tmp_path, models, headings, wish):
    jobs = [result("larosa", (1.5, 1.4, 1.6)) for _ in range(models)]
    for number, job in enumerate(jobs):
        job["model"] = {"name": f"model-{number}", "dtype": "float32", "fingerprint": f"{number}"}
    measured = loaded(tmp_path, *jobs)
    groups = groups_of(measured)
    found = [*zip(names_of(groups), map(choices, groups), strict=True)]
    panel = dashboard(measured, found, "").panels[-1]
    axes = Figure().add_axes((0, 0, 1, 1))
    panel.draw(axes)
    bold = [one.get_text() for one in axes.texts if one.get_fontweight() == "bold"]
    assert [one for one in bold if one.startswith("model-")] == headings
    assert f"| `{wish}` | larosa" in markdown(panel.table)


def test_the_summary_has_the_figure_of_each_wish_and_says_what_noise_hides(tmp_path):
    job = serving(result("larosa", (1.5, 1.4, 1.6), committed=1000), (3.0, 2.8, 3.2))
    job["serving"] |= {"verdict": "faster"}
    job["speed"] |= {"prefill_speedup": interval(1.2, 0.6, 2.4),
                     "prefill_control": interval(1.0, 0.5, 2.0)}  # fmt: skip
    measured = loaded(tmp_path, job)
    table = markdown(dashboard(measured, [("", choices(measured))], "").panels[-1].table)
    assert "| `speed alone` | larosa | 1.50 [1.40, 1.60] |" in table
    assert "| `many requests together` | larosa | 3.00 [2.80, 3.20] |" in table
    assert "| `least KV memory, one text at a time` | larosa | 50% of the memory |" in table
    assert "| `least KV memory, many requests together` | larosa | 50% of the memory |" in table
    assert "| `the first token soon` | too noisy to say | " in table
    del job["speed"]["prefill_speedup"]
    measured = loaded(tmp_path / "again", job)
    table = markdown(dashboard(measured, [("", choices(measured))], "").panels[-1].table)
    assert "| `the first token soon` | not measured | " in table


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (4.0, "b does most for time; together they do more than one by one"),
        (2.5, "b does most for time; what they do to each other cannot be told from noise "
              "(× 0.965 to × 1.036)"),
        (1.5, "b does most for time; together they do less than one by one"),
    ],
)  # fmt: skip
def test_the_waterfall_says_what_methods_do_to_each_other(tmp_path, whole, told):
    jobs = [result("a", (1.25, 1.2, 1.3)), result("b", (2.0, 1.9, 2.1)),
            result("ab", (whole, whole - 0.1, whole + 0.1), methods=("a", "b"))]  # fmt: skip
    plot = waterfall.waterfall_plot(attributions(loaded(tmp_path, *jobs)), "")
    assert plot is not None
    assert plot.title == f"ab: {told}"
    text = markdown(plot.panels[0].table)
    assert "| `unmodified model` | 4.00 |" in text
    assert "| `b alone` | 1.60 | × 0.500 |" in text


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ((1.8, 1.4, 2.3), (2.0, 1.9, 2.1), "a and b alone lower time"),
        ((1.8, 0.9, 3.6), (1.4, 1.3, 1.5), "b alone lowers time"),
        ((1.3, 1.2, 1.4), (2.0, 1.9, 2.1), "b does most for time"),
        ((0.9, 0.5, 1.6), (0.95, 0.93, 0.97), "whether a method alone lowers time cannot"),
    ],
)  # fmt: skip
def test_the_waterfall_looks_at_every_method(tmp_path, first, second, told):
    jobs = [result("a", first), result("b", second), result("ab", methods=("a", "b"))]
    plot = waterfall.waterfall_plot(attributions(loaded(tmp_path, *jobs)), "")
    assert plot is not None
    assert plot.title.startswith(f"ab: {told}")


def test_the_waterfall_builds_on_no_job_that_does_not_compare(tmp_path):
    jobs = [result("a", (1.25, 1.2, 1.3)), result("b", (2.0, 1.9, 2.1)),
            result("ab", (2.5, 2.4, 2.6), methods=("a", "b"))]  # fmt: skip
    jobs[0]["speed"]["verdict"] = "too noisy to say"
    jobs[2]["speed"]["ms_per_byte"] = {"baseline": about(9.0), "candidate": about(3.6)}
    plot = waterfall.waterfall_plot(attributions(loaded(tmp_path, *jobs)), "")
    assert plot is not None
    assert plot.title == (
        "ab (not ranked): b alone lowers time; "
        "what they do to each other cannot be said (not ranked, too noisy)"
    )
    assert plot.note.startswith("Not ranked: ")
    plot.panels[0].draw(axes := Figure().add_axes((0, 0, 1, 1)))
    texts = {one.get_text() for one in axes.texts}
    assert texts >= {"a alone (too noisy)", "b alone", "ab (not ranked)"}


def test_memory_that_two_methods_leave_as_it_is_is_lowered_by_none(tmp_path):
    jobs = [result(name, methods=tuple(name)) for name in ("a", "b", "ab")]
    for job in jobs:
        job["speed"] = None
    plot = waterfall.waterfall_plot(attributions(loaded(tmp_path, *jobs)), "")
    assert plot is not None
    assert plot.title.startswith("ab: no method alone lowers KV cache; ")


@pytest.mark.parametrize(
    ("speedup", "samples", "told"),
    [
        ((1.1, 0.5, 2.0), True, "whether a method alone lowers time cannot be told from noise; "),
        ((0.5, 0.4, 0.6), True, "no method alone lowers time; "),
        ((2.0, 1.9, 2.1), False, "; what they do to each other has no interval"),
    ],
)
def test_the_waterfall_says_nothing_of_what_it_cannot_tell(tmp_path, speedup, samples, told):
    jobs = [result("a", speedup), result("b", speedup), result("ab", methods=("a", "b"))]
    if not samples:
        del jobs[-1]["samples"]
    plot = waterfall.waterfall_plot(attributions(loaded(tmp_path, *jobs)), "")
    assert plot is not None
    assert told in plot.title


def test_the_waterfall_is_of_the_largest_stacks_whose_methods_were_all_measured(tmp_path):
    jobs = [result(name) for name in "ab"] + [
        result("ab", methods=("a", "b")), result("abc", methods=("a", "b", "c"))
    ]  # fmt: skip
    plot = waterfall.waterfall_plot(attributions(loaded(tmp_path, *jobs)), "")
    assert plot is not None
    assert plot.title.startswith("ab: ")


def test_the_sites_of_a_sparsity_map_are_named_as_people_call_them(tmp_path):
    (job,) = loaded(tmp_path, sparse(result("larosa")))
    (plot,) = single.sparsity_maps({0: job})
    assert plot.title == "larosa drops about the same at every site: 10% on average"
    for row in job.content["sparsity"]["layers"]:
        row["achieved"] += 0.3 * (row["site"] in ("h1", "h3"))
    (plot,) = single.sparsity_maps({0: job})
    assert plot.title == "larosa drops most at the attention input and MLP input: 40% on average"
    text = markdown(plot.panels[0].table)
    for name in ("attention input (h1)", "attention output (h2)", "MLP input (h3)",
                 "MLP activation (h4)"):  # fmt: skip
        assert f"layer 2, {name}` | " in text


def test_jobs_that_drop_the_same_share_one_sparsity_map(tmp_path):
    labels = [("larosa", 3), ("larosa, vattention", 3), ("other", 4)]
    jobs = loaded(tmp_path, *(sparse(result(label), layers) for label, layers in labels))
    jobs[1].content["sparsity"]["layers"][0]["achieved"] += 0.004  # less than the map can show
    first, second = single.sparsity_maps(dict(enumerate(jobs, 5)))
    assert first.title.startswith("larosa and larosa, vattention drop about the same ")
    assert first.file == "sparsity_by_layer_5.png"
    assert second.title.startswith("other drops about the same ")
    assert second.file == "sparsity_by_layer_7.png"


def test_no_shade_of_a_sparsity_map_follows_the_colours_of_the_page():
    shades = {to_hex(single.SHADES(number)) for number in range(single.SHADES.N)}
    assert not shades & set(COLOURS)


def test_operating_points_say_what_the_most_n_grams_save_and_cost(tmp_path):
    (job,) = loaded(tmp_path, budgeted(result("adaptivocab")))
    plot = single.operating_points(job, 0)
    assert plot is not None
    told = "merging 500 n-grams saves 20.0% of the tokens, for +30.0% bits per byte"
    assert plot.title == f"adaptivocab: {told}; the stack merges 8"
    job.content["vocabulary"]["merged"] = 500
    plot = single.operating_points(job, 0)
    assert plot is not None
    assert plot.title == f"adaptivocab: {told}"


def test_serving_is_shown_at_the_most_requests(tmp_path):
    merged = serving(result("a"), (2.0, 1.9, 2.1))
    for row in merged["serving"]["servers"]:  # half as many tokens for the same texts
        row["tokens_per_s"] = about(80.0 if row["server"] == "candidate" else 160.0)
    jobs = loaded(tmp_path, merged, result("b"))
    plot = serving_plot(jobs, "")
    assert plot is not None
    told = "2.00 [1.90, 2.10] times the requests per second of padded generate"
    assert plot.title == f"a answers {told}"
    told = "| `a` | 16.00 [14.40, 17.60] | 8.00 [7.20, 8.80] | - | 9.60 [8.64, 10.56] |"
    assert told in markdown(plot.panels[0].table)
    wide = loaded(tmp_path / "wide", serving(result("a"), (1.5, 0.8, 2.8)),
                  serving(result("b"), (1.3, 1.2, 1.4)))  # fmt: skip
    plot = serving_plot(wide, "")
    assert plot is not None
    assert plot.title.startswith("b answers 1.30 [1.20, 1.40] times")
    slower = loaded(tmp_path / "slower", serving(result("a"), (1.0, 0.9, 1.1)))
    plot = serving_plot(slower, "")
    assert plot is not None
    assert plot.title.startswith("No stack measurably answers more requests")


@pytest.mark.parametrize(
    ("high", "told"), [(-0.01, "beat cut ones with a"), (0.01, "No compressed")]
)
def test_compressed_prompts_are_told_by_their_control(tmp_path, high, told):
    plot = compression.compression_plot(loaded(tmp_path, compressing("a", -0.03, high)), "")
    assert plot is not None
    assert told in plot.title


@pytest.mark.parametrize(
    "wanted", [[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [0.01, 0.01, 0.01], [1.0, 1.0, 0.99]]
)
def test_labels_keep_their_order_and_cover_no_other(wanted):
    places = spread(wanted, [0.1] * 3)
    assert all(above - below > 0.0999 for above, below in pairwise(places))
    assert places[-1] - 0.05 >= -0.05
    assert places[0] + 0.05 <= 1.0501


@pytest.mark.parametrize("height", [0, 0.5, 1])
def test_the_lines_to_points_at_one_height_do_not_cross(height):
    axes = Figure().add_axes((0, 0, 1, 1))
    labels = [Label([f"{x}"], (x, height), bold=False) for x in (0.1, 0.9, 0.3, 0.6)]
    beside(axes, labels, height=3)
    lines = [(*one.xy, *one.xyann) for one in axes.texts]  # the axes' units are fractions of them
    for (x, y, end, place), (other_x, _, _, other_place) in combinations(sorted(lines), 2):
        above = y + (place - y) * (other_x - x) / (end - x) - height  # the first at the second
        assert above * (place - other_place) >= 0


def test_points_that_a_reader_sees_at_one_place_share_a_label(tmp_path):
    stacks = (("a", 500, 0.01), ("b", 500, 0.01), ("c", 500, 0.02), ("d", 1000, 0.01))
    jobs = loaded(tmp_path, *(result(name, lost=lost, committed=of) for name, of, lost in stacks))
    plot = pareto.quality_plot(jobs, "")
    assert plot is not None
    plot.panels[1].draw(axes := Figure().add_axes((0, 0, 1, 1)))
    assert {one.get_text() for one in axes.texts} == {"a, b", "c", "d"}


@pytest.mark.filterwarnings("error")
def test_labels_of_any_length_and_character_are_drawn(tmp_path):
    odd = f"model.name=/a$b/{'long/' * 60} corpus.glob=/日本$_^/`|.txt"
    job = sparse(budgeted(serving(compressing("stack", 0.01, 0.02), (2.0, 1.9, 2.1))))
    job["speed"] |= {"prefill_speedup": interval(1, 1, 1), "control": interval(1, 1, 1)}
    jobs = [{**job, "label": f"stack {odd} {number}"} for number in range(2)]
    build_report(written(tmp_path, jobs))
    assert len(list((tmp_path / "report").glob("*.png"))) == 8 + 1 + 2  # one sparsity map of both


def test_rebuilding_changes_nothing(tmp_path):
    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}

    written(tmp_path, [result("baseline"), result("quick", (1.5, 1.4, 1.6))])
    build_report(tmp_path)
    first = state()
    build_report(tmp_path)
    assert state() == first
    assert set(first) == {
        "report.md", "report.html", "results.csv", "comprehensive_benchmark_results.json",
        "all_methods_comprehensive_dashboard.png", "all_methods_speedup_comparison.png",
        "all_methods_throughput_comparison.png", "all_methods_token_comparison.png",
        "all_methods_kv_cache_comparison.png", "quality_versus_speed.png",
    }  # fmt: skip


def test_the_settings_of_a_user_s_matplotlib_change_no_picture(tmp_path):
    jobs = loaded(tmp_path / "jobs", result("larosa", (1.5, 1.4, 1.6)))
    plot = comparison(SPEED, jobs, "")
    assert plot is not None

    def drawn() -> tuple[bytes, str]:
        write_png(plot, tmp_path / "one.png")
        return (tmp_path / "one.png").read_bytes(), svg(plot, plot.panels[0])

    own = drawn()
    theirs = {
        "text.usetex": True, "figure.autolayout": True, "savefig.bbox": "tight", "font.size": 30,
        "axes.facecolor": "red",
    }  # fmt: skip
    with matplotlib.rc_context(theirs):
        assert drawn() == own
        assert matplotlib.rcParams["font.size"] == 30
