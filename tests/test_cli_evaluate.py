"""`evaluate.py` as a user runs it, one job and a sweep."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.conftest import SMALL, TINY
from trimtab.commands import evaluate
from trimtab.commands.folders import Claim, claimed, withdraw
from trimtab.errors import ConfigError
from trimtab.models.embedded import cache_folder
from trimtab.registry import config_folder

FAST = [
    "quality.windows=2", "quality.window_bytes=128", "quality.context_bytes=16",
    "generation.prompts=2", "generation.prompt_bytes=32", "generation.new_tokens=4",
    "speed.repeats=3", "speed.seconds=0", "serving.requests=[]",
]  # fmt: skip
METHOD = ["methods.larosa.tokens=512", "methods.larosa.window=64"]


def job_folder(root: Path) -> Path:
    (folder,) = root.glob("outputs/*-*-*/*")
    return folder


def test_calibrate_then_evaluate(fresh_command, tmp_path):
    assert fresh_command("calibrate.py", *TINY, *SMALL).returncode == 0
    empty = dict.fromkeys(("WANDB_MODE", "WANDB_BASE_URL"), "")  # as good as none
    done = fresh_command("evaluate.py", *TINY, "methods=larosa", *METHOD, *FAST, **empty)
    assert done.returncode == 0, done.stderr
    folder = job_folder(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["methods"] == ["larosa"]
    assert set(result["quality"].values()) == {None}  # of random weights
    # The first token of every text is dense.
    assert result["sparsity"]["bytes_fraction"] == pytest.approx(0.6, abs=0.05)
    assert done.stdout.splitlines() == [str(folder / "report" / "report.md")]
    assert (folder / "report" / "report.md").exists()
    assert not (folder / "error.json").exists()
    assert len(list(tmp_path.glob("outputs/wandb/offline-run-*"))) == 2


def test_a_sweep_goes_on_after_a_failure_and_reports_it(command, tmp_path):
    done = command(
        "evaluate.py", "-m", *TINY, "methods=larosa", *METHOD, "model.device=cpu,cuda:99,auto",
        *FAST,
    )  # fmt: skip
    assert done.returncode == 1
    refusal = "model.device=cuda:99: this machine has"
    assert f"evaluate.py: error: {refusal}" in done.stderr
    assert "Traceback" not in done.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    status = {
        path.parent.name: json.loads(path.read_text())["status"]
        for path in sorted(sweep.glob("[0-9]/*.json"))
    }
    assert status == {"0": "ok", "1": "error", "2": "ok"}
    report = (sweep / "report" / "report.md").read_text()
    overrides = json.loads((sweep / "1" / "error.json").read_text())["overrides"]
    assert overrides[:2] == TINY
    assert report.count("| `larosa model.device=") >= 3
    assert report.count(f"| **failed**: {refusal}") == 1


def test_a_stack_that_an_experiment_of_the_users_names_is_the_label(command, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [override /methods: vattention]\n"
    )
    done = command(
        "evaluate.py", "--config-dir", "mine", "experiment=own", *TINY, *FAST,
        "tracking.mode=disabled", "hydra.run.dir=job",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "job" / "result.json").read_text())
    assert (result["label"], result["methods"]) == ("vattention", ["vattention"])
    assert result["options"] == ["--config-dir=mine"]


def test_a_command_of_a_report_reads_the_configuration_that_the_job_read(command, tmp_path):
    """The jobs end at a corpus that holds no text, or at an artifact that is not there."""
    (tmp_path / "blank.txt").touch()
    for folder in ("mine", "another"):
        (tmp_path / folder / "methods").mkdir(parents=True)
        mine = tmp_path / folder / "methods" / f"of_{folder}.yaml"
        mine.write_text("defaults: [/method@larosa: larosa]\n")
    (tmp_path / "mine" / "whole.yaml").write_text("defaults: [evaluate, _self_]\n")
    given = [f"--config-dir={tmp_path}/mine", "--config-name=whole", *TINY]
    given += [f"hydra.searchpath=[file://{tmp_path}/another]", "tracking.mode=disabled"]
    typed = ["--config-dir=mine", "--config-name=whole", *given[4:5]]
    for place, more in (
        ("job", ["methods=of_mine", "hydra.run.dir=job"]),
        ("job/0", ["-m", "methods=of_another", "seed=1", "hydra.sweep.dir=job"]),
    ):
        blank = command("evaluate.py", *given, *more, "corpus=files", "corpus.glob=*.txt")
        assert "the corpus *.txt holds no text" in blank.stderr
        assert json.loads((tmp_path / place / "error.json").read_text())["options"] == typed
        shutil.rmtree(tmp_path / "job")
    command("evaluate.py", *given, "methods=of_mine", "on_missing=error", "hydra.run.dir=job")
    told = (tmp_path / "job" / "report" / "report.md").read_text()
    (made,) = re.findall("Make the artifacts of `of_mine`: `python (.*)`", told)
    again = command(*shlex.split(made), "corpus=files", "corpus.glob=*.txt")
    assert "the corpus *.txt holds no text" in again.stderr


@pytest.mark.parametrize("many", [[], ["-m", "seed=0"]])
def test_what_an_experiment_sets_for_another_stack_is_not_read(command, tmp_path, many):
    """The jobs end at a corpus that holds no text."""
    (tmp_path / "blank.txt").touch()
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.write_text("# @package _global_\nmethods: {larosa: {sparsity: 0.6}}\n")
    given = ["--config-dir=mine", "experiment=own", *TINY, "corpus=files", "corpus.glob=*.txt"]
    given += ["tracking.mode=disabled", *many]
    other = command("evaluate.py", *given, "methods=vattention")
    assert "the corpus *.txt holds no text" in other.stderr
    for more in ([], ["methods=vattention", "larosa.sparsity=0.3"]):
        refused = command("evaluate.py", *given, *more)
        assert "methods.larosa: larosa is " in refused.stderr
        assert refused.stderr.count(", write methods=larosa") == 1


def test_a_folder_in_a_file_may_be_below_the_home_folder(command, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.write_text("# @package _global_\nartifacts: ~/kept\ntracking: {folder: ~/runs}\n")
    given = ["--config-dir", "mine", "experiment=own", "methods=larosa", *METHOD, *TINY, *FAST]
    environment = {"HOME": str(tmp_path / "home"), "TRIMTAB_CACHE": str(cache_folder())}
    done = command("evaluate.py", *given, **environment)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "home").iterdir()} >= {"kept", "runs"}
    assert not (tmp_path / "~").exists()
    for place, many in (("run", []), ("sweep", ["-m"])):
        own.write_text(f"# @package _global_\nhydra: {{{place}: {{dir: ~/job}}}}\n")
        refused = command("evaluate.py", *many, *given, **environment)
        expected = f"hydra.{place}.dir=~/job: a file's ~ is no home folder to Hydra: write $"
        assert expected in refused.stderr
    whole = "defaults: [calibrate, _self_]\nhydra: {run: {dir: ~/job}}\n"
    (tmp_path / "mine" / "whole.yaml").write_text(whole)
    refused = command("calibrate.py", "--config-dir", "mine", "--config-name", "whole", *TINY)
    assert refused.stderr.startswith("calibrate.py: error: hydra.run.dir=~/job: a file's ~ is no ")
    assert not (tmp_path / "~").exists()


def test_a_folder_that_holds_a_result_is_refused_and_left_as_it_is(command, tmp_path):
    job = ["methods=baseline", *TINY, *FAST, "tracking.mode=disabled"]
    folder = "hydra.run.dir=job"
    done = command("evaluate.py", *job, folder)
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, f"Folder: {tmp_path / 'job'}")

    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = state()
    for more in (["speed.repeats=4", folder], ["-m", "seed=0,1", "hydra.sweep.dir=job"]):
        again = command("evaluate.py", *more, *job)
        assert again.returncode == 1
        (line,) = again.stderr.splitlines()
        assert f"{more[-1]}: holds another job's result.json: name a new folder" in line
        assert state() == before


@pytest.mark.parametrize(
    ("task", "held", "label"),
    [
        (
            ["methods=all", "~methods.larosa", "methods.vattention.layout=mega"],
            ["adaptivocab", "vattention"],
            "all ~larosa vattention.layout=mega",
        ),
        (["methods=larosa", "experiment=adds"], ["larosa", "vattention"], "larosa,vattention"),
        (["methods=own"], ["larosa", "of_the_user"], "own"),
        (["methods=larosa", "methods=baseline"], [], "baseline"),
    ],
)
def test_a_label_says_which_methods_the_job_holds(monkeypatch, task, held, label):
    chosen = SimpleNamespace(overrides=SimpleNamespace(task=task))
    monkeypatch.setattr(evaluate.HydraConfig, "get", lambda: chosen)
    assert evaluate.label(OmegaConf.create({"methods": {name: {} for name in held}})) == label


def test_what_fails_after_the_result_leaves_it_alone(monkeypatch, tmp_path):
    def measured(config: DictConfig, folder: Path) -> None:
        (folder / "result.json").write_text("{}")
        raise OSError("the run cannot be closed")

    monkeypatch.setattr(evaluate, "_evaluate", measured)
    monkeypatch.setattr(evaluate, "checked", lambda config, kind: config)
    job = SimpleNamespace(callbacks={"folder": SimpleNamespace(resume=False)})
    monkeypatch.setattr(evaluate.HydraConfig, "get", lambda: job)
    monkeypatch.setattr(evaluate, "in_sweep", lambda: False)
    monkeypatch.setattr(evaluate, "output_folder", lambda: tmp_path)
    with pytest.raises(OSError, match="closed"):
        evaluate.run(OmegaConf.create({"methods": {}}))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_job_that_has_no_result_yet_keeps_a_sweep_out_of_the_folder_above(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "command.json").touch()
    refused = pytest.raises(ConfigError, match=r"holds another job's own/command.json: name a new")
    with refused, claimed(tmp_path, "hydra.sweep.dir", below=True):
        pytest.fail("not refused")
    with claimed(tmp_path / "own", "hydra.sweep.dir", below=True):
        pass  # a sweep that was stopped before any job had ended


def test_a_job_within_a_sweep_is_not_resumed(tmp_path, capsys):
    started = {"arguments": [], "folder": "/", "jobs": 1, "started": None}
    (folder := tmp_path / "own").mkdir()
    (folder / "command.json").write_text(json.dumps(started))
    (tmp_path / "command.json").write_text(json.dumps(started | {"sweeper": "one"}))
    config = OmegaConf.create({"hydra": {"run": {"dir": str(folder)}, "output_subdir": None}})
    with pytest.raises(SystemExit):
        Claim(resume=True).on_run_start(config)
    assert f"the sweep in {tmp_path} has its own jobs there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", " ", None])
def test_a_folder_of_no_name_is_not_the_current_one(name, capsys):
    config = OmegaConf.create({"hydra": {"run": {"dir": name}, "overrides": {"task": []}}})
    with pytest.raises(SystemExit):
        Claim().on_run_start(config)
    expected = f"error: hydra.run.dir={name or ''}: expected a folder, not empty: leave it out for"
    assert expected in capsys.readouterr().err


def test_a_job_that_is_refused_leaves_no_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here" / "outputs" / "date" / "time" / ".hydra").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    withdraw(Path("outputs/date/time"), ".hydra")
    assert not list(Path.cwd().iterdir())
    for made in ("outputs/date/time", "outputs/date/other"):
        Path(made).mkdir(parents=True)
    withdraw(Path("outputs/date/time"), None)
    assert [one.name for one in Path("outputs/date").iterdir()] == ["other"]


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/nothing"])
def test_a_folder_that_cannot_be_is_named_with_its_setting(folder):
    refused = pytest.raises(ConfigError, match=f"hydra.run.dir={folder}: cannot be written: .*name")
    with refused, claimed(Path(folder), "hydra.run.dir"):
        pytest.fail("not refused")


def test_a_folder_is_claimed_until_its_job_ends(tmp_path):
    with (
        claimed(tmp_path, "hydra.run.dir"),
        pytest.raises(ConfigError, match=r"another job is running in it: name another folder"),
        claimed(tmp_path, "hydra.run.dir"),
    ):
        pass
    with claimed(tmp_path, "hydra.run.dir"):
        (tmp_path / "0").mkdir()
    (tmp_path / "0" / "error.json").touch()
    with claimed(tmp_path, "hydra.run.dir"):
        pass
    (tmp_path / "report").mkdir()  # a sweep's, or somebody else's folder
    for below in (False, True):
        with (
            pytest.raises(ConfigError, match="holds another job's (0/error.json|report): name a n"),
            claimed(tmp_path, "hydra.run.dir", below=below),
        ):
            pass
    with (
        pytest.raises(ConfigError, match=r"hydra.sweep.dir=.*: holds another job's 0/error.json"),
        claimed(tmp_path, "hydra.sweep.dir", below=True),
    ):
        pass


@pytest.mark.parametrize("place", ["run", "sweep"])
@pytest.mark.parametrize("name", ["calibrate", "evaluate"])
def test_jobs_that_start_in_one_second_have_folders_of_their_own(name, place):
    composed = OmegaConf.load(config_folder() / f"{name}.yaml")
    folder = OmegaConf.to_container(composed)["hydra"][place]["dir"]  # not resolved
    assert folder == "." or folder.endswith("${now:%H-%M-%S-%f}")


VOCABULARY = [
    f"methods.adaptivocab.{setting}"
    for setting in ("size=50", "tokens=256", "validation_tokens=128", "window=64")
]


def test_a_setting_in_a_sweep_is_for_the_stacks_that_hold_its_method(command, tmp_path):
    done = command(
        "evaluate.py", "-m", "methods=baseline,larosa,all", *TINY, *FAST, "sparsity=0.25,0.4",
        "size=20", "methods.adaptivocab.mode=draft", "tracking.mode=disabled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    results = {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/result.json")}
    drafts = "adaptivocab.size=20 adaptivocab.mode=draft"
    assert {job: result["label"] for job, result in sorted(results.items())} == {
        "0": "baseline",
        "2": "larosa sparsity=0.25",
        "3": "larosa sparsity=0.4",
        "4": f"all larosa.sparsity=0.25 {drafts}",
        "5": f"all larosa.sparsity=0.4 {drafts}",
    }
    asked = [results[job]["sparsity"]["requested"] for job in "2345"]
    assert asked == [0.25, 0.4, 0.25, 0.4]
    repeats = "Not run: baseline is what the job with larosa.sparsity=0.25 measures"
    assert done.stderr.splitlines().count(repeats) == 1
    assert [path.name for path in (sweep / "1").glob("*.json")] == ["repeat.json"]
    again = command("evaluate.py", f"resume={sweep}")
    assert (again.returncode, again.stdout) == (0, f"{sweep / 'report' / 'report.md'}\n")
    assert "Nothing to run" in again.stderr


def test_larosa_on_an_adapted_vocabulary_is_calibrated_on_it(command, tmp_path):
    vocabulary = [*VOCABULARY, "methods.adaptivocab.max_bpb_increase=null"]
    stack = ["methods=all", *METHOD, *vocabulary, *FAST, "threads=1"]
    settings = [one.removeprefix("methods.adaptivocab.") for one in vocabulary]
    made = command("calibrate.py", *TINY, "method=adaptivocab", *settings)
    assert made.returncode == 0, made.stderr
    alone = command("calibrate.py", *TINY, *SMALL)
    assert alone.returncode == 0, alone.stderr
    stack.append("on_missing=error")
    missing = command("evaluate.py", *TINY, *stack)
    assert missing.returncode == 1
    (line,) = [line for line in missing.stderr.splitlines() if "error:" in line]
    assert "no artifact of larosa on top of adaptivocab" in line
    whole = command("calibrate.py", *TINY, "methods=all", *METHOD, *vocabulary)
    assert whole.returncode == 0, whole.stderr
    assert "Calibrating larosa for tiny-llama as adaptivocab made it on" in whole.stderr
    adapted, sparse = map(Path, whole.stdout.splitlines())
    assert str(adapted) == made.stdout.strip()
    done = command("evaluate.py", *TINY, *stack)
    assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/*/*/result.json")]
    (result,) = results
    assert result["methods"] == ["adaptivocab", "larosa", "vattention"]
    assert result["artifacts"] == {"adaptivocab": adapted.name, "larosa": sparse.name}
    assert sparse.name != Path(alone.stdout.strip()).name
    assert result["tokens"]["prompt"]["saving"] > 0
    assert result["sparsity"]["achieved"] > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("methods", ["vattention", "all"])
def test_a_stack_with_a_cache_is_measured_on_every_device(command, tmp_path, methods, device):
    more = [*METHOD, *VOCABULARY, "methods.adaptivocab.max_bpb_increase=null"]
    done = command(
        "evaluate.py", *TINY, f"model.device={device}", f"methods={methods}", *FAST,
        "serving.requests=[2]", "serving.prompt_bytes=[16,32]", "serving.new_tokens=[4,8]",
        "serving.repeats=2", "tracking.mode=disabled", *(more if methods == "all" else []),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((job_folder(tmp_path) / "result.json").read_text())
    step, layout = {
        "cpu": ("C++", "slot"), "cuda": ("decode step in a CUDA graph", "mega"),
    }[device]  # fmt: skip
    assert result["device"].startswith(device)
    assert result["engine"]["decode_step"].startswith(step)
    assert result["engine"]["kv_layout"] == layout
    kv = result["kv"]
    assert 0 < kv["live_bytes"] < kv["committed_bytes"] < kv["reserved_bytes"]
    assert all(rate > 0 for rate in result["samples"]["read_bytes_per_s"])
    (served,) = [one for one in result["serving"]["servers"] if one["server"] == "candidate"]
    assert (served["refused"], served["reason"]) == (0, None)
    if methods == "all":
        assert result["tokens"]["prompt"]["saving"] > 0
        assert result["sparsity"]["achieved"] > 0
    if device == "cuda":
        parameters = sum(result["memory"]["parameter_bytes"].values())
        assert result["memory"]["peak_device_bytes"] > parameters + kv["committed_bytes"]


def test_a_missing_artifact_is_one_line_with_the_command_that_makes_it(command, tmp_path):
    done = command("evaluate.py", *TINY, "methods=larosa", *METHOD, *FAST, "on_missing=error")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if "error:" in line)
    assert "calibrate.py method=larosa tokens=512 window=64 and the same model" in line
    error = json.loads((job_folder(tmp_path) / "error.json").read_text())
    assert error["status"] == "error"
    assert error["type"] == "MissingArtifactError"


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        (["sparsity=40"], "larosa.sparsity=40.0: expected at least 0 and below 1"),
        (["corpus=files", "corpus.glob=no/**/*.md"], "corpus.glob=no/**/*.md: no file matches"),
    ],
)
@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_a_mistyped_value_is_refused_without_the_heavy_imports(command, tmp_path, given, refused):
    arguments = [f"{command}.py", f"method{'' if command == 'calibrate' else 's'}=larosa", *given]
    script = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "scipy", "wandb")))  # not to be had
sys.argv = {arguments}
from trimtab.commands.{command} import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode() == f"{command}.py: error: {refused}\n"
    assert command == "calibrate" or not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.parametrize(
    "given",
    [
        ["hydra.run.dir=sweep"],
        ["hydra.run.dir=sweep/7"],
        ["hydra.run.dir=sweep/0/mine"],
        ["-m", "hydra.sweep.dir=sweep/7"],
    ],
    ids=" ".join,
)
def test_a_folder_within_a_sweeps_is_refused(command, tmp_path, given):
    started = {"arguments": [], "folder": "/", "jobs": 1, "sweeper": "one", "started": None}
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "sweep" / "command.json").write_text(json.dumps(started))
    done = command("evaluate.py", *TINY, "methods=baseline", *given)
    assert done.returncode == 1
    assert done.stderr == (
        f"evaluate.py: error: {given[-1]}: the sweep in {tmp_path}/sweep has its own jobs there: "
        "name a folder outside of it\n"
    )
    assert {one.name for one in tmp_path.rglob("*")} == {"sweep", "command.json", "0"}


def test_a_corpus_without_test_documents_is_refused_before_it_is_calibrated_on(command, tmp_path):
    (tmp_path / "one.txt").write_text("a single document " * 1000)
    corpus = [
        "corpus=files",
        "corpus.glob=one.txt",
        "corpus.calibration=0.95",
        "corpus.validation=0.04",
    ]
    done = command("evaluate.py", *TINY, "methods=larosa", *METHOD, *FAST, *corpus)
    assert done.returncode == 1
    assert "has no document in its test split" in done.stderr
    assert not (tmp_path / "artifacts").exists()


def test_a_text_too_short_for_a_metric_is_refused_before_anything_is_calibrated(command, tmp_path):
    done = command(
        "evaluate.py", *TINY, "methods=larosa", *METHOD, *FAST, "generation.prompts=99999"
    )
    assert done.returncode == 1
    assert "generation.prompts=99999: the test documents hold only" in done.stderr
    assert not (tmp_path / "artifacts").exists()


def test_the_artifact_of_another_model_is_refused(command, tmp_path):
    made = command("calibrate.py", *TINY, *SMALL)
    other = command("calibrate.py", *TINY, "model.seed=1", *SMALL)
    folders = [tmp_path / done.stdout.strip() for done in (made, other)]
    assert folders[0].name != folders[1].name
    shutil.rmtree(folders[1])
    shutil.copytree(folders[0], folders[1])
    done = command("evaluate.py", *TINY, "model.seed=1", "methods=larosa", *METHOD, *FAST)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "belongs to another model" in line


def test_a_mistyped_setting_leaves_nothing(command, tmp_path):
    done = command("evaluate.py", "qualty.windows=3")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("evaluate.py: error: unknown setting qualty, did you mean quality?")
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_without_a_sweep_needs_a_stack(command):
    done = command("evaluate.py", "experiment=ablation", *TINY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("sweeps over stacks, which needs -m; one job of it needs methods=STACK")


@pytest.mark.parametrize(
    "setting",
    [
        "hydra/launcher=workers",
        "hydra.sweep.dir=elsewhere",
        "hydra.sweep.subdir=${hydra.job.num}",
    ],
)
def test_what_only_a_sweep_reads_is_refused_without_one(command, setting):
    done = command("evaluate.py", setting, *TINY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"{setting}: only a sweep reads it, which needs -m")


@pytest.mark.parametrize("script", ["calibrate.py", "evaluate.py"])
def test_what_only_a_single_job_reads_is_refused_in_a_sweep(command, tmp_path, script):
    done = command(script, "-m", "seed=0,1", "hydra.run.dir=mine", *TINY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(": only a single job reads it, of a sweep it is hydra.sweep.dir=mine")
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_experiment_comes_with_the_one_that_was_meant(command, tmp_path):
    done = command("evaluate.py", "-m", "experiment=ablaton")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("evaluate.py: error: experiment=ablaton: no such option, did you mean")
    assert "did you mean ablation?; there are: ablation, demo" in line
    assert list(tmp_path.iterdir()) == []
