"""The YAML files, the schemas behind them, and the ranges they accept."""

import errno
import os
import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from safetensors import SafetensorError

from tests.report.cases import result, written
from trimtab.commands.check import checked, typed
from trimtab.commands.launch import launch
from trimtab.commands.messages import Mistake, one_line
from trimtab.commands.overrides import expand
from trimtab.commands.sweep import foreign_methods
from trimtab.config import CalibrateConfig, EvaluateConfig, GenerationConfig, TrackingConfig
from trimtab.errors import ConfigError, TrimtabError
from trimtab.method import Method
from trimtab.registry import (
    SECTIONS,
    TARGETED,
    build,
    config_folder,
    method_names,
    register,
    targets,
)
from trimtab.report.attribution import missing, wholes
from trimtab.report.load import load_jobs
from trimtab.settings import describe
from trimtab.stack import Stack
from trimtab.wandb_variables import disabled_by

CORES = len(os.sched_getaffinity(0))
KINDS = {"calibrate": CalibrateConfig, "evaluate": EvaluateConfig}


def composed(name: str, *overrides: str):
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(name, list(overrides))


def refused(name: str, *overrides: str) -> str:
    """Return the line a user sees."""
    with pytest.raises(Mistake) as error:
        typed(composed(name, *overrides), KINDS[name])
    return one_line(error.value)


@pytest.mark.parametrize("name", KINDS)
def test_the_defaults_are_sound(name):
    assert isinstance(typed(composed(name), KINDS[name]), KINDS[name])


@pytest.mark.parametrize("name", method_names())
def test_what_is_composed_for_a_method_is_its_class_with_its_defaults(name):
    kind = targets("method")[name]
    assert kind.name == name
    node = composed("evaluate", f"methods={name}").methods[name]
    assert build(node, Method) == kind()


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (path.parent.name, path.stem)
        for group in ("model", "corpus")
        for path in sorted((config_folder() / group).glob("*.yaml"))
    ],
)
def test_every_option_composes_in_both_commands(group, option):
    for name in KINDS:
        assert group in composed(name, f"{group}={option}")


def test_every_experiment_composes():
    for path in (config_folder() / "experiment").glob("*.yaml"):
        typed(composed("evaluate", f"experiment={path.stem}"), EvaluateConfig)


def ablation() -> list[str]:
    swept = OmegaConf.load(config_folder() / "experiment" / "ablation.yaml")
    given = f"methods={swept.hydra.sweeper.params.methods}"
    (override,) = OverridesParser.create().parse_overrides([given])
    return list(override.sweep_string_iterator())


def grid() -> list[str]:
    swept = OmegaConf.load(config_folder() / "sweeps" / "stacks.yaml")
    return list(swept.parameters.methods["values"])


@pytest.mark.parametrize("choices", [ablation, grid])
def test_a_sweep_over_stacks_completes_the_attribution_of_each(choices, tmp_path):
    jobs = [
        result(choice, methods=tuple(composed("evaluate", f"methods={choice}").methods))
        for choice in choices()
    ]
    rows = load_jobs(written(tmp_path, jobs))
    assert max(len(whole.methods) for whole in wholes(rows)) == 3
    assert [missing(whole, rows) for whole in wholes(rows)] == [[]] * 4


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("methods=baseline", []),
        ("methods=larosa", ["larosa"]),
        ("methods=[larosa]", ["larosa"]),
        ("methods=[baseline,larosa]", ["larosa"]),
    ],
)
def test_stacks_are_composed_from_names_and_lists(choice, expected):
    config = typed(composed("evaluate", choice), EvaluateConfig)
    assert Stack(build(node, Method) for node in config.methods.values()).names == expected


def test_a_setting_of_a_stacks_member_is_overridden_by_its_path():
    config = composed("evaluate", "methods=larosa", "methods.larosa.sparsity=0.25")
    assert build(config.methods.larosa, Method).sparsity == 0.25


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("evaluate", ["qualty.windows=3"], "unknown setting qualty"),
        ("evaluate", ["quality.window=3"], "unknown setting quality.window, did you mean windows?"),
        (
            "evaluate",
            ["quality.windows=many"],
            "quality.windows=many: expected a whole number, at least 2",
        ),
        ("evaluate", ["quality.windows=1"], "quality.windows=1: expected at least 2"),
        ("evaluate", ["quality.window_bytes=10"], "quality.window_bytes=10: expected at least 64"),
        ("evaluate", ["quality.context_bytes=4096"], "quality.context_bytes=4096: expected"),
        (
            "evaluate",
            ["quality.out_of_domain_windows=1"],
            "out_of_domain_windows=1: expected 0 or at least 2",
        ),
        ("evaluate", ["quality.compression_windows=-1"], "windows=-1: expected 0 or at least 2"),
        ("evaluate", ["quality.compression_bytes=31"], "compression_bytes=31: expected at least"),
        ("evaluate", ["quality.compression_context_bytes=0"], "bytes=0: expected at least 32"),
        ("evaluate", ["generation.new_tokens=1"], "generation.new_tokens=1: expected at least 2"),
        ("evaluate", ["generation.prompts=0"], "generation.prompts=0: expected at least 2"),
        ("evaluate", ["speed.repeats=1"], "speed.repeats=1: expected at least 2"),
        ("evaluate", ["speed.repeats=2", "generation.prompts=2"], "over 4 means nothing"),
        ("evaluate", ["speed.warmup=-1"], "speed.warmup=-1: expected at least 0"),
        ("evaluate", ["serving.requests=[8,0]"], "serving.requests=[8, 0]: expected each at least"),
        (
            "evaluate",
            ["serving.requests=8"],
            "serving.requests=8: expected a list of whole numbers: [1,2], e",
        ),
        ("evaluate", ["serving.requests={a:1}"], "serving.requests: expected a list of whole numb"),
        (
            "evaluate",
            ["methods=larosa", "methods.larosa=[1]"],
            "methods.larosa: expected one of its",
        ),
        (
            "evaluate",
            ["seed=${oc.env:NOPE}"],
            "${oc.env:NOPE}: NOPE is not set: set it, or write a",
        ),
        ("evaluate", ["serving.new_tokens=[9,3]"], "serving.new_tokens=[9, 3]: expected the least"),
        ("evaluate", ["serving.prompt_bytes=[64]"], "prompt_bytes=[64]: expected the least and"),
        ("evaluate", ["serving.peers=[vllm]"], "serving.peers=['vllm']: expected some of static, "),
        (
            "evaluate",
            ["serving.peers=[static,static]"],
            "['static', 'static']: expected some of st",
        ),
        ("evaluate", ["on_missing=guess"], "on_missing=guess: expected calibrate or error"),
        ("evaluate", ["seed=null"], "seed=null: expected a whole number, at least 0 and below"),
        ("evaluate", ["threads=x"], "threads=x: expected null or a whole number, at least 1"),
        ("evaluate", ["search.max_bpb_increase=x"], "=x: expected null or a number, at least 0"),
        ("evaluate", ["quality.tasks=a"], "quality.tasks=a: expected a list of texts: [A,B]"),
        ("evaluate", ["serving.requests=[a]"], "serving.requests[0]=a: expected a list of whole"),
        ("evaluate", ["quality=3"], "quality=3: expected one of its settings: write quality.SETT"),
        ("evaluate", ["paired=maybe"], "paired=maybe: expected true or false"),
        ("evaluate", ["threads=0"], "threads=0: expected null or at least 1"),
        ("evaluate", [f"threads={CORES + 1}"], f"at most {CORES}, the cores this process may use"),
        ("calibrate", ["threads=100000"], "threads=100000: expected null or at least 1"),
        ("evaluate", ["seed=-1"], "seed=-1: expected at least 0 and below 4294967296"),
        ("calibrate", [f"seed={2**32}"], f"seed={2**32}: expected at least 0"),
        (
            "evaluate",
            ["model=random", "model.config=tiny-llama", f"model.seed={10**26}"],
            f"model.seed={10**26}: expected at least 0",
        ),
        (
            "evaluate",
            ["model=random", "model.config=tiny-lama"],
            "model.config=tiny-lama: expected one of tiny-llama, tiny-mistral",
        ),
        ("evaluate", ["+foo=3"], "unknown setting foo; the top level has: seed"),
        ("evaluate", ["+tracking.foo=3"], "unknown setting tracking.foo; tracking has: mode"),
        ("calibrate", ["model._target_=os.system"], "_target_=os.system: expected the dotted name"),
        (
            "calibrate",
            ["model._target_=trimtab.corpora.PythonDoc"],
            "expected the dotted name of a class: trimtab.corpora has no PythonDoc, did you mean "
            "PythonDocs?",
        ),
        (
            "calibrate",
            ["~model._target_"],
            "a ModelSource without _target_: the option's file",
        ),
        (
            "calibrate",
            ["model._target_=trimtab.corpora.PythonDocs"],
            "_target_=PythonDocs: expected a ModelSource",
        ),
        ("evaluate", ["methods=[]"], "methods is empty: write methods=baseline for no method"),
        (
            "evaluate",
            ["methods=[lorasa]"],
            "methods=lorasa: no such option, did you mean larosa?; there are: adaptivocab, all, ba",
        ),
        (
            "evaluate",
            ["methods=[larosa,larosa]"],
            "methods: larosa is named twice (all contains it): name it once",
        ),
        (
            "evaluate",
            ["methods=[fused,all]"],
            "methods: adaptivocab is named twice (all and fused contain it): name it once",
        ),
        (
            "evaluate",
            ["methods.larosa.sparsity=0.4"],
            "methods.larosa: larosa is not in the stack, write methods=larosa",
        ),
        (
            "evaluate",
            ["methods=larosa", "methods.adaptivocab.size=10"],
            "adaptivocab is not in the stack, write 'methods=[larosa,adaptivocab]'",
        ),
        ("evaluate", ["methods=lorasa"], "methods=lorasa: no such option, did you mean larosa?"),
        (
            "evaluate",
            ["methods=larosa,vattention"],
            "a sweep over these needs -m; one stack of them is 'methods=[larosa,vattention]'",
        ),
        ("evaluate", ["sparsty=0.4"], "unknown setting sparsty, did you mean sparsity?; the top"),
        ("evaluate", ["+sparsty=0.4"], "unknown setting sparsty, did you mean sparsity?; the top"),
        ("calibrate", ["method=all"], "method=all: is a stack, write methods=all"),
        (
            "calibrate",
            ["corpus=files", "corpus.glob=a,b"],
            """a sweep over these needs -m; one value with a comma is 'corpus.glob="a,b"'""",
        ),
        ("calibrate", ["corpus=files", "corpus.glob="], "corpus.glob=: expected a text, not empty"),
        ("calibrate", ["artifacts="], "artifacts=: expected a text, not empty"),
        (
            "evaluate",
            ["model=/models/my-llama"],
            "for a folder of yours write model=hub model.name=/models/my-llama",
        ),
        ("calibrate", ["corpus=/texts"], "write corpus=files corpus.glob=/texts"),
        ("evaluate", ["methods=larosa", "methods.larosa.p=1"], "unknown setting methods.larosa.p"),
        ("calibrate", ["model.device=tpu"], "model.device=tpu: expected auto, cpu, cuda"),
        ("calibrate", ["model.dtype=int8"], "model.dtype=int8: expected one of auto, float64, "),
        (
            "calibrate",
            ["model=hub"],
            "model.name is required: write model.name=VALUE (org/model on",
        ),
        ("calibrate", ["model=hub", "model.name=/nope"], "model.name=/nope: there is no such"),
        (
            "calibrate",
            ["model=hub", "model.name=/tmp", "model.revision=v2"],
            "model.revision=v2: is of models on the hub, and /tmp is a folder: leave it out",
        ),
        (
            "calibrate",
            ["corpus=hub", "corpus.name=/tmp", "corpus.revision=v2"],
            "corpus.revision=v2: is of datasets on the hub, and /tmp is a folder: leave it out",
        ),
        ("calibrate", ["model.name=gpt2"], "unknown setting model.name, it belongs to model=hub"),
        (
            "calibrate",
            ["corpus.calibration=1.5"],
            "corpus.calibration=1.5: expected above 0 and below 1",
        ),
        ("calibrate", ["corpus.validation=0.5"], "corpus.validation=0.5: expected less than"),
        ("calibrate", ["corpus.max_documents=0"], "corpus.max_documents=0: expected null or"),
        ("evaluate", ["~timing.tokens"], "~timing.tokens: there is nothing of this name to take"),
        ("evaluate", ["~method"], "~method: there is nothing of this name to take out"),
        ("evaluate", ["~speed.repeats"], "~speed.repeats: a setting is not taken out"),
        ("evaluate", ["hydra.run.dir=null"], "hydra.run.dir=null: expected a value"),
        ("evaluate", ["~model", "model.device=cpu"], "model.device: ~model takes out what has"),
        (
            "evaluate",
            ["corpus=files", "corpus.glob=/a${x}"],
            "${x} names no setting: write a value without it",
        ),
        ("evaluate", ["artifacts=/a${x}"], "artifacts: ${x} names no setting: write a value witho"),
        ("evaluate", ["metrics=kv"], "metrics: they are not set as a whole: take one out with ~"),
        ("evaluate", ["metrics=[kv]"], "metrics: they are not set as a whole: take one out wit"),
        ("calibrate", ["tracking.mode=of"], "tracking.mode=of: expected one of offline, online"),
        ("evaluate", ["tracking.mode=offlin"], "offline, online, disabled, did you mean offline?"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name, overrides, expected):
    line = refused(name, *overrides)
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sparsity": 1.0}, r"larosa.sparsity=1.0: expected at least 0 and below 1"),
        ({"sparsity": -0.1}, "larosa.sparsity=-0.1"),
        ({"sparsity": "half"}, "larosa.sparsity|could not be converted"),
        ({"basis": "dct"}, "Invalid value 'dct', expected one of"),
        ({"selection": "random"}, "Invalid value 'random', expected one of"),
        ({"window": 1}, "larosa.window=1: expected at least 2"),
        ({"tokens": 100, "window": 200}, "larosa.tokens=100: expected at least one window"),
        ({"probe_tokens": 100}, "larosa.probe_tokens=100: expected at least one window"),
        ({"group": 0}, "larosa.group=0: expected at least 1 layer"),
        ({"cap": 0.9}, "larosa.cap=0.9: expected at least 1"),
        *(
            ({field: float(value)}, f"larosa.{field}={value}: expected")
            for field in ("sparsity", "cap")
            for value in ("inf", "nan")
        ),
        ({"dense_prefix": -1}, "larosa.dense_prefix=-1: expected at least 0 tokens"),
        ({"count": "entries"}, "Invalid value 'entries', expected one of"),
        ({"transforms": "some"}, "Invalid value 'some', expected one of"),
        ({"precision": "int4"}, "Invalid value 'int4', expected one of"),
        ({"residual": "head"}, "Invalid value 'head', expected one of"),
        ({"allocation": "beam"}, "Invalid value 'beam', expected one of"),
        ({"prefill": "half"}, "Invalid value 'half', expected one of"),
        ({"basis": "none", "residual": "layer"}, "larosa.basis=none: expected a basis to rotate"),
        ({"basis": "none", "transforms": "all"}, "larosa.basis=none: expected a basis to rotate"),
        (
            {"allocation": "uniform"},
            "larosa.transforms=auto: expected all or none, unless allocation=steepest chooses",
        ),
        ({"allocation": "alpha"}, "larosa.transforms=auto: expected all or none"),
        (
            {"residual": "site", "transforms": "none"},
            "larosa.transforms=none: expected all or auto with residual=site",
        ),
        (
            {"selection": "auto", "tokens": 512},
            "larosa.tokens=512: expected at least two windows, for selection=auto and",
        ),
        (
            {"allocation": "auto", "probe_tokens": 512},
            "larosa.probe_tokens=512: expected at least two windows, for selection=auto and",
        ),
        ({"allocation": "uniform", "selection": "auto"}, "larosa.transforms=auto: expected all or"),
        ({"sparseness": 0.4}, "Key 'sparseness' not in 'LaRoSA'"),
    ],
)
def test_a_methods_own_settings_are_checked(settings, expected):
    with pytest.raises(Exception, match=expected):
        build({"_target_": "trimtab.larosa.LaRoSA", **settings}, Method)


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.0},
        {"tokens": 512, "probe_tokens": 512},
        {"cap": 1.0, "group": 1, "window": 2},
        {"basis": "none", "transforms": "none", "allocation": "uniform"},
        {"basis": "none"},
        {"allocation": "alpha", "transforms": "all"},
        {"residual": "site", "transforms": "all"},
        {"allocation": "auto", "selection": "auto", "tokens": 1024, "probe_tokens": 1024},
    ],
)
def test_settings_at_the_edge_of_their_ranges_are_taken(settings):
    method = build({"_target_": "trimtab.larosa.LaRoSA", **settings}, Method)
    assert {key: method.config()[key] for key in settings} == settings


@pytest.mark.parametrize("name", ["calibrate", "evaluate"])
def test_the_most_a_seed_and_threads_may_be(name):
    config = typed(composed(name, f"seed={2**32 - 1}", f"threads={CORES}"), KINDS[name])
    assert (config.seed, config.threads) == (2**32 - 1, CORES)


def test_the_help_says_which_methods_need_no_calibration():
    help_text = (config_folder() / "calibrate.yaml").read_text()
    kinds = targets("method").values()
    (uncalibrated,) = [kind.name for kind in kinds if not kind.calibrated]
    assert f"${{options:method}} ({uncalibrated} needs no calibration)" in help_text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left", "/from", None, "/to"), "/to: No space left"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "standard output, or a temporary file: No space left on device",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory"),  # of os.getcwd
            "the current folder has been removed: change to one that is there",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "No usable temporary directory found in ['/tmp']: set TMPDIR to a folder with room",
        ),
        (SafetensorError("I/O error: No space left"), "I/O error: No space left"),
    ],
)
def test_a_file_the_system_refuses_is_one_line(monkeypatch, capsys, tmp_path, error, line):
    with pytest.raises(SystemExit, match="1"):
        launched(monkeypatch, tmp_path, error)
    assert capsys.readouterr().err == f"evaluate.py: error: {line}\n"


@pytest.mark.parametrize(
    "error", [OSError(errno.EBADF, "Bad file descriptor"), SafetensorError("no such tensor")]
)
def test_a_defect_keeps_its_traceback(monkeypatch, tmp_path, error):
    with pytest.raises(type(error)):
        launched(monkeypatch, tmp_path, error)


def launched(monkeypatch, folder, error):
    """Run a task that raises `error`."""

    def task(config):
        raise error

    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    launch(task, "evaluate")


def test_a_methods_setting_by_itself_is_its_own_in_both_commands():
    given = ["method=larosa", "sparsity=0.4", "--cfg", "job", "+new=1", "model.dtype=float32", "-m"]
    assert expand(given, "calibrate") == [
        "-m", "method=larosa", "method.sparsity=0.4", "+method.new=1", "model.dtype=float32",
        "--cfg", "job",
    ]  # fmt: skip
    given = ["methods=all", "sparsity=0.4", "layout=mega", "seed=1", "nonsense=2"]
    assert expand(given, "evaluate") == [
        "methods=all", "methods.larosa.sparsity=0.4", "methods.vattention.layout=mega", "seed=1",
        "nonsense=2",
    ]  # fmt: skip


def test_a_plus_sign_stays_before_the_whole_name():
    assert expand(["+sparsity=0.2", "++tokens=512"], "calibrate") == [
        "+method.sparsity=0.2", "++method.tokens=512"
    ]  # fmt: skip
    assert expand(["-m", "++layout=mega", "+seed=1"], "evaluate") == [
        "-m", "++methods.vattention.layout=mega", "+seed=1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (
            "evaluate",
            ["methods=larosa", "sparsity=0.4", "seed=0", "methods.larosa.sparsity=0.5", "seed=1"],
            ["methods=larosa", "methods.larosa.sparsity=0.5", "seed=1"],
        ),
        (
            "evaluate",
            ["-m", "seed=0,1", "--cfg", "job", "++seed=2"],
            ["-m", "++seed=2", "--cfg", "job"],
        ),
        ("calibrate", ["sparsity=0.4", "larosa.sparsity=0.5"], ["method.sparsity=0.5"]),
        ("calibrate", ["methods=all", "methods=larosa"], ["~method", "methods=larosa"]),
    ],
)
def test_of_a_setting_that_is_typed_twice_the_last_counts_and_is_the_only_one(
    name, given, expected
):
    assert expand(given, name) == expected


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("+hydra.foo=1", "unknown setting hydra.foo; hydra has: "),
        ("++hydra.run.dri=x", "unknown setting hydra.run.dri, did you mean dir?; hydra.run has: d"),
        ("+hydra.job.config.x=1", "unknown setting hydra.job.config.x; hydra.job.config has: "),
    ],
)
def test_what_is_added_to_hydras_own_settings_has_to_be_read(command, added, message):
    with pytest.raises(TrimtabError) as error:
        expand([added], command)
    assert str(error.value).startswith(message)
    read = ["+hydra.job.env_set.FOO=1", "++hydra.run.dir=x"]
    assert expand(read, command) == read


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_parameter_of_the_sweeper_is_an_override_of_the_sweep(plus):
    typed = f"{plus}hydra.sweeper.params"
    given = ["-m", "methods=all", f"{typed}.layout=slot,mega", f"{typed}.seed=1"]
    assert expand(given, "evaluate") == [
        "-m", "methods=all", "++methods.vattention.layout=slot,mega", "seed=1"
    ]  # fmt: skip
    refused = {f"{typed}={{seed:1}}": "name the values of each setting by itself: SETTING=A,B"}
    single = {f"{typed}.layout=mega": "only a sweep reads it, which needs -m"}
    for more, lines in ((["-m"], refused), ([], single)):
        for argument, expected in lines.items():
            with pytest.raises(TrimtabError, match=re.escape(f"{argument}: {expected}") + "$"):
                expand([*more, "methods=all", argument], "evaluate")


@pytest.mark.parametrize(
    "value",
    [
        "/texts/part-[0-3]*.txt",
        "[a-c].md",
        "/a=b/*",
        "/téxts/*",
        "/it's (1)/{a}",
        "/a#",
        "\\'",
        "100%",
    ],
)
def test_a_value_that_hydra_cannot_read_is_a_text_as_it_stands(value):
    overrides = expand(["corpus=files", f"corpus.glob={value}"], "calibrate")
    assert composed("calibrate", *overrides).corpus.glob == value
    overrides = expand(["-m", "corpus=files", f"++corpus.glob={value}"], "evaluate")
    assert overrides[:2] == ["-m", "corpus=files"]


@pytest.mark.parametrize("value", ["2026_11", "1e3", "true", "NaN", "-0", ".5", " 1_0"])
def test_a_text_that_looks_like_something_else_is_a_text_as_it_stands(value):
    for given in ("artifacts", "tracking.project"):
        made = composed("evaluate", *expand([f"{given}={value}"], "evaluate"))
        assert OmegaConf.select(made, given) == value.strip()
    swept = expand(["-m", f"artifacts=a,{value}"], "calibrate")
    assert swept == ["-m", f"artifacts=a,'{value.strip()}'"]


def test_texts_of_lists_and_of_hydras_own_are_as_they_are_typed():
    given = [
        "quality.tasks=[1e3,2]", "hydra.run.dir=2026_12", "+hydra.job.env_set.A=1e3",
        "hydra.job.chdir=true",
    ]  # fmt: skip
    assert expand(given, "evaluate") == [
        "quality.tasks=['1e3',2]", "hydra.run.dir='2026_12'", "+hydra.job.env_set.A='1e3'",
        "hydra.job.chdir=true",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    ["seed=1_0", "sparsity=4e-1", "artifacts=null", "artifacts=12", "artifacts=a\\,1e3"],
)
def test_what_is_no_other_text_stays(given):
    assert expand([given], "calibrate")[0].endswith(given)


def test_the_home_folder_may_be_written_short_in_any_value(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["corpus.glob=~/texts/*.md", "artifacts=~", "~corpus.glob", "--config-dir=~/x"]
    assert expand(given, "evaluate") == [
        "corpus.glob=/home/me/texts/*.md", "artifacts=/home/me", "~corpus.glob", "--config-dir=~/x",
    ]  # fmt: skip
    assert expand(['artifacts="~/a b"'], "evaluate") == ["artifacts='/home/me/a b'"]
    paths = "hydra.searchpath=[~/my,'file:///a b',file://~/c, ${oc.env:X}]"
    read = "hydra.searchpath=[/home/me/my,'file:///a b','file://~/c',${oc.env:X}]"
    assert expand([paths], "evaluate") == [read]
    for given, expected in (
        ("artifacts=~/a, ~/b", "artifacts=/home/me/a,/home/me/b"),
        ("artifacts=\"~/a\",'~/b'", "artifacts='/home/me/a','/home/me/b'"),
        ("corpus.glob=~/[ab].md", "corpus.glob='/home/me/[ab].md'"),
    ):
        assert expand(["-m", given], "calibrate") == ["-m", expected]


def test_values_of_a_sweep_that_hydra_cannot_read_are_refused_with_the_way_out():
    expected = """quote each of them, as in 'corpus.glob="FIRST","SECOND"'"""
    with pytest.raises(TrimtabError, match=expected):
        expand(["-m", "corpus.glob=/a[1],/b[2]"], "calibrate")


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        (["methods=[larosa,vattention"], "]"),
        (["methods=larosa,vattention]"], "["),
        (["-m", "methods=[larosa,vattention,all"], "]"),
        (["serving={requests:[1,2]"], "}"),
        (["serving.requests=[1,2"], "]"),
    ],
)
def test_a_bracket_without_its_other_is_named(given, lacking):
    with pytest.raises(TrimtabError, match=f"^{re.escape(given[-1])}: a \\{lacking} is missing$"):
        expand(given, "evaluate")


@pytest.mark.parametrize("command", KINDS)
@pytest.mark.parametrize("value", ["9" * 309, f"-{'9' * 5000}", f"1,{'9' * 400}"])
@pytest.mark.parametrize("key", ["sparsity", "seed", "+larosa.sparsity"])
def test_a_number_with_hundreds_of_digits_is_one_short_line(command, key, value):
    with pytest.raises(TrimtabError, match=r"expected a number of less than 300 digits") as error:
        expand([f"{key}={value}"], command)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("name", "given", "there"),
    [
        ("evaluate", "methods=glob(lorasa*)", "; there are: adaptivocab, all, baseline"),
        ("calibrate", "seed=range(2,0)", ""),
    ],
)
def test_a_sweep_over_nothing_is_refused(name, given, there):
    with pytest.raises(TrimtabError, match=f"^{re.escape(given)}: a sweep over no value{there}"):
        expand(["-m", given], name)


@pytest.mark.parametrize(
    ("name", "given", "refused"),
    [
        ("evaluate", "paired=5", "paired=5"),
        ("evaluate", "paired=true,-1", "paired=-1"),
        ("evaluate", "fold_norms=2", "fold_norms=2"),
        ("evaluate", "methods.larosa.fold_norms=12", "methods.larosa.fold_norms=12"),
        ("calibrate", "force=3", "force=3"),
        ("calibrate", "method.fold_norms=7", "method.fold_norms=7"),
    ],
)
def test_a_number_is_not_taken_for_true(name, given, refused):
    with pytest.raises(TrimtabError, match=f"^{re.escape(refused)}: expected true or false$"):
        expand([given], name)


@pytest.mark.parametrize("given", ["paired=0", "paired=1,false", "force=true", "seed=2"])
def test_truth_may_be_a_digit(given):
    assert expand([given], "calibrate" if given.startswith("force") else "evaluate") == [given]


def test_a_prompt_holds_a_character_of_any_text():
    with pytest.raises(ConfigError, match=r"generation.prompt_bytes=3: expected at least 4 bytes"):
        GenerationConfig(prompt_bytes=3)


@pytest.mark.parametrize(
    "given", ["methods=larosa,vattention,larosa", "seed=1,1", "methods.larosa.sparsity=.4,0.4"]
)
def test_a_value_that_is_swept_over_twice_is_refused(given):
    with pytest.raises(TrimtabError, match=f"^{re.escape(given)}: .* is there 2 times: name it"):
        expand(["-m", given], "evaluate")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("evaluate", "methods=larosa,[larosa]", "larosa and [larosa] are one"),
        ("evaluate", "methods=larosa,'larosa'", "larosa and 'larosa' are one"),
        (
            "evaluate",
            "methods=all,fused,[vattention,adaptivocab]",
            "fused and [vattention,adaptivo",
        ),
        ("calibrate", "method=larosa,'larosa'", "larosa and 'larosa' are one: name it once"),
        ("evaluate", "model=random,'random'", "random and 'random' are one: name it once"),
    ],
)
def test_one_option_in_two_spellings_is_refused(name, given, expected):
    with pytest.raises(TrimtabError) as error:
        expand(["-m", given], name)
    assert str(error.value).startswith(f"{given}: {expected}")


@pytest.mark.parametrize(
    "given",
    ["methods=baseline,larosa,[larosa,vattention],fused,all", "methods=mine,yours,[mine,x]"],
)
def test_stacks_that_differ_are_no_repeats(given):
    assert expand(["-m", given], "evaluate") == ["-m", given]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("evaluate", "~metrics", "take one of them out with ~metrics.NAME"),
        ("evaluate", "~tracking", "write tracking.mode=disabled"),
        ("calibrate", "~tracking=wandb", "write tracking.mode=disabled"),
        (
            "evaluate",
            "~quality",
            "leave quality out for its defaults; what is measured is taken ou",
        ),
        ("evaluate", "~generation=greedy", "leave generation out for its defaults"),
        ("evaluate", "~seed", "leave seed out for its default"),
        ("calibrate", "~force", "leave force out for its default"),
        ("calibrate", "~model", "leave model out for its default"),
    ],
)
def test_what_would_be_there_again_is_not_taken_out(name, given, expected):
    with pytest.raises(TrimtabError) as error:
        expand([given], name)
    assert str(error.value).startswith(f"{given}: is not taken out as a whole: {expected}")


@pytest.mark.parametrize("given", ["~metrics.kv", "~methods.larosa", "~methods", "~hydra.run"])
def test_what_can_be_taken_out_is(given):
    assert expand([given], "evaluate") == [given]


@pytest.mark.parametrize("option", ["-m", "--m", "--multi", "--multirun"])
def test_a_sweep_is_one_however_short_it_is_asked_for(option):
    given = ["methods=baseline,larosa", "sparsity=0.4", option]
    assert expand(given, "evaluate") == [option, given[0], "++methods.larosa.sparsity=0.4"]


CHOSEN = "an option is chosen by its group"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("evaluate", ["larosa"], "expected SETTING=VALUE, did you mean methods=larosa?"),
        ("calibrate", ["seed=1", "larosa"], "expected SETTING=VALUE, did you mean method=larosa?"),
        ("evaluate", ["seed=1", "-m", "a,b"], "expected SETTING=VALUE"),
        ("calibrate", ["sparsity =0.4"], "expected SETTING=VALUE, without a space before the ="),
        ("evaluate", ["methods=null"], "is no option, methods=baseline is no method; there are"),
        ("evaluate", ["methods=3"], "is no option, methods=baseline is no method; there are: ad"),
        ("calibrate", ["model=null"], "is no option, leave model out for the default; there are"),
        (
            "evaluate",
            ["methods=larosa", "+methods=vattention"],
            "methods has one value, nothing is added: write methods=vattention, and sever",
        ),
        ("calibrate", ["++model=hub"], "model has one value, nothing is added: write mode"),
        (
            "evaluate",
            ["methods=larosa", "+method@methods.vattention=vattention"],
            "a stack is named as a whole, as in 'methods=[larosa,vattention]'",
        ),
        ("evaluate", ["methods=all", "~method@methods.larosa"], "a stack is named as a whole"),
        ("evaluate", ["-m", "hydra.launcher=workers"], f"{CHOSEN}: write hydra/launcher=workers; "),
        ("evaluate", ["-m", "++hydra.sweeper=search"], f"{CHOSEN}: write hydra/sweeper=search; t"),
        ("evaluate", ["hydra.launcher=null"], f"{CHOSEN}: write hydra/launcher=OPTION; there are"),
        ("calibrate", ["--sparsity=0.4"], "no such option; a setting has no dashes: sparsity=V"),
        ("evaluate", ["seed=1", "0.4", "--sparsity"], "no such option; a setting has no dashes"),
        ("calibrate", ["+experiment=demo"], "experiments are evaluate.py's"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_mean_nothing_is_refused_as_it_stands(name, given, expected):
    with pytest.raises(TrimtabError) as error:
        expand(given, name)
    assert str(error.value).startswith(f"{given[-1].removeprefix('--config-name=')}: {expected}")


@pytest.mark.parametrize("given", ["methods=baseline,larosa", "methods=larosa,all"])
def test_what_is_no_stack_is_not_advised(given):
    assert refused("evaluate", given) == f"{given}: a sweep over these needs -m"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (
            "evaluate",
            ["methods=[baseline,larosa]"],
            "baseline is no method: leave it out; -m methods=baseline,larosa measures each",
        ),
        ("evaluate", ["-m", "methods=[larosa,'baseline'],all"], "baseline is no method: leave it"),
        ("calibrate", ["methods=[larosa,baseline]"], "baseline is no method: leave it out"),
        ("calibrate", ["method=[larosa,vattention]"], "write 'methods=[larosa,vattention]'"),
    ],
)
def test_a_list_is_of_methods(name, given, expected):
    with pytest.raises(TrimtabError, match=re.escape(expected)):
        expand(given, name)


def test_settings_may_stand_on_both_sides_of_an_option():
    given = ["seed=1", "--cfg", "job", "sparsity=0.3", "-m", "--config-name", "calibrate", "~new"]
    assert expand(given, "calibrate") == [
        "-m", "seed=1", "method.sparsity=0.3", "~new", "--cfg", "job",
        "--config-name", "calibrate",
    ]  # fmt: skip


def test_a_folder_of_configurations_is_added_not_put_in_place_of_ours():
    with pytest.raises(TrimtabError, match="^--config-path /tmp: the .* added by --config-dir$"):
        expand(["--config-path", "/tmp", "seed=1"], "evaluate")


@pytest.mark.parametrize("name", KINDS)
def test_the_configuration_of_the_other_command_is_refused(name):
    (other,) = KINDS.keys() - {name}
    for given in (["--config-name", other], ["-cn", f"{other}.yaml"]):
        with pytest.raises(TrimtabError, match=f"{given[1]}: is what {other}.py reads: write py"):
            expand(given, name)
    assert expand(["--config-name", name], name) == ["--config-name", name]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (
            "evaluate",
            "methods.larosa=3",
            "methods.larosa=3: expected one of its settings: write me",
        ),
        (
            "evaluate",
            "methods.larosa.tokens=abc",
            "larosa.tokens=abc: expected a whole number of tokens",
        ),
        ("calibrate", "method.basis=x", "larosa.basis=x: expected one of fisher_pca, output_pca"),
    ],
)
def test_a_value_of_a_method_that_is_of_another_type_is_refused(name, given, expected):
    stack = ["methods=larosa"] if name == "evaluate" else []
    with pytest.raises(Mistake) as error:
        config = composed(name, *stack, given)
        foreign_methods(config)
        checked(config, KINDS[name])
    assert one_line(error.value).startswith(expected)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("evaluate", "method=larosa", "evaluate.py takes a stack of methods, write methods=larosa"),
        (
            "evaluate",
            "method.tokens=5",
            "write methods.adaptivocab.tokens=5 or methods.larosa.tokens=5",
        ),
        ("evaluate", "+method=larosa", "write methods=larosa"),
        ("evaluate", "method.sparsity=0.2", "write sparsity=0.2"),
        ("calibrate", "methods.larosa.sparsity=0.2", "write sparsity=0.2"),
        ("calibrate", "adaptivocab.size=2", "adaptivocab is not the method, write method=adaptivo"),
    ],
)
def test_what_the_other_command_takes_is_refused_with_what_to_write(name, given, expected):
    with pytest.raises(TrimtabError, match=f"^{re.escape(given)}: .*{re.escape(expected)}"):
        expand([given], name)


def test_calibration_is_of_one_method_or_of_a_stack():
    given = ["methods=all", "sparsity=0.2", "seed=1", "--cfg", "job"]
    assert expand(given, "calibrate") == [
        "~method", "methods=all", "methods.larosa.sparsity=0.2", "seed=1", "--cfg", "job"
    ]  # fmt: skip
    config = typed(composed("calibrate", *expand(given[:3], "calibrate")), CalibrateConfig)
    assert config.method is None
    assert build(config.methods["larosa"], Method).sparsity == 0.2
    both = "method=larosa and methods=all: name one method or a stack, not both"
    with pytest.raises(TrimtabError, match=both):
        expand(["methods=all", "method=larosa"], "calibrate")


@pytest.mark.parametrize("name", KINDS)
def test_variables_of_wandb_are_the_defaults_of_tracking(monkeypatch, name):
    given = {"MODE": "disabled", "PROJECT": "mine", "ENTITY": "us", "DIR": "/runs"}
    for key, value in given.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    found = typed(composed(name), KINDS[name]).tracking
    assert (found.mode, found.project, found.entity, found.folder) == tuple(given.values())
    found = typed(composed(name, "tracking.mode=online", "tracking.folder=x"), KINDS[name]).tracking
    assert (found.mode, found.folder) == ("online", "x")
    monkeypatch.setenv("WANDB_DIR", "~/runs")
    monkeypatch.setenv("HOME", "/home/me")
    assert typed(composed(name), KINDS[name]).tracking.folder == "/home/me/runs"
    for key in given:
        monkeypatch.setenv(f"WANDB_{key}", "")
    assert typed(composed(name), KINDS[name]).tracking == TrackingConfig()
    for mode in ("sometimes", "Disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        expected = "expected offline, online, disabled, dryrun or run"
        assert refused(name) == f"WANDB_MODE={mode}: {expected}"
    for old, mode in (("dryrun", "offline"), ("run", "online")):
        monkeypatch.setenv("WANDB_MODE", old)
        assert typed(composed(name), KINDS[name]).tracking.mode == mode


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", ["true", "1", "YES", "false", ""])
def test_wandb_is_disabled_by_its_own_switch(monkeypatch, name, value):
    monkeypatch.setenv("WANDB_DISABLED", value)
    monkeypatch.setenv("WANDB_MODE", "online")
    disabled = value not in ("false", "")
    found = typed(composed(name), KINDS[name]).tracking.mode
    assert found == ("disabled" if disabled else "online")
    assert typed(composed(name, "tracking.mode=offline"), KINDS[name]).tracking.mode == "offline"


@pytest.mark.parametrize("name", KINDS)
def test_settings_files_of_wandb_count_where_there_is_no_variable(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "users"))
    monkeypatch.setenv("WANDB_MODE", "")
    for folder, lines in (
        ("users", ["mode = online", "project = theirs", "entity = us"]),
        ("wandb", ["mode = disabled", "project = 100%%"]),  # W&B reads %% as %
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "settings").write_text("\n".join(["[default]", *lines]))
    found = typed(composed(name), KINDS[name]).tracking
    assert (found.mode, found.project, found.entity) == ("disabled", "100%", "us")
    assert disabled_by() == "wandb/settings: mode=disabled"
    assert typed(composed(name, "tracking.mode=offline"), KINDS[name]).tracking.mode == "offline"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert typed(composed(name), KINDS[name]).tracking.project == "mine"
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = of")
    assert refused(name).startswith("wandb/settings: mode=of: expected offline, online")
    for unread in ("mode", "[default]\nmode = disabled\nmode = off", "[default]\n[default]"):
        (tmp_path / "wandb" / "settings").write_text(unread)
        assert typed(composed(name), KINDS[name]).tracking.mode == "online"


@pytest.mark.parametrize("plus", ["", "++"])
def test_the_names_in_messages_can_be_typed(plus):
    """Errors name a method's setting larosa.sparsity, and so may who types it."""
    given = [f"{plus}larosa.sparsity=0.1"]
    made = composed("calibrate", *expand(given, "calibrate"))
    assert build(made.method, Method).sparsity == 0.1
    made = composed("evaluate", "methods=all", *expand(given, "evaluate"))
    assert build(made.methods.larosa, Method).sparsity == 0.1
    assert expand(["-m", *given], "evaluate")[1] == "++methods.larosa.sparsity=0.1"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("calibrate", "+seeed=3", "unknown setting seeed, did you mean seed?"),
        ("evaluate", "+seeed=3", "unknown setting seeed, did you mean seed?"),
        ("calibrate", "++sparcity=3", "unknown setting larosa.sparcity, did you mean sparsity?"),
        ("evaluate", "+larosa.p=1", "unknown setting larosa.p; larosa has: sparsity"),
        ("calibrate", "+corpus.foo=1", "unknown setting corpus.foo; corpus has: calibration"),
        ("evaluate", "++model.foo=1", "unknown setting model.foo; model has: device"),
        ("evaluate", "++quality.foo=1", "unknown setting quality.foo; quality has: windows"),
    ],
)
def test_what_is_added_and_no_setting_reads_is_refused(name, given, expected):
    stack = ["methods=larosa"] if name == "evaluate" else []
    with pytest.raises(Mistake) as error:
        made = typed(composed(name, *stack, *expand([given], name)), KINDS[name])
        for node in [made.method] if name == "calibrate" else made.methods.values():
            build(node, Method)
    assert expected in one_line(error.value)


def test_help_marks_the_defaults_and_says_what_a_stack_holds():
    register()
    explained = str(OmegaConf.load(config_folder() / "evaluate.yaml").hydra.help.template)
    assert "hub, random, smollm2-135m (the default)" in explained
    assert "resume=multirun/DATE/TIME" in explained
    assert "experiment  ablation, demo, gpu, search, seed_benchmark, sparsity_sweep" in explained
    assert "all (adaptivocab + larosa + vattention), baseline (the default), fused" in explained


def test_a_file_that_names_no_class_is_named(monkeypatch, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "bad.yaml").write_text("_target_: trimtab.larosa.LaRoSSA\n")
    monkeypatch.setattr("trimtab.registry.config_folder", lambda: tmp_path)
    expected = r"bad.yaml: _target_=trimtab.larosa.LaRoSSA: expected the dotted name of a class"
    with pytest.raises(TrimtabError, match=expected):
        targets("method")


def test_a_setting_that_several_methods_have_is_refused_with_its_full_names():
    with pytest.raises(TrimtabError, match="window is a setting of adaptivocab and larosa: write "
                       "methods.adaptivocab.window=64 or methods.larosa.window=64"):  # fmt: skip
        expand(["methods=all", "window=64"], "evaluate")
    given = ["methods=larosa,[larosa,vattention]", "window=64", "-m"]
    assert expand(given, "evaluate")[2] == "++methods.larosa.window=64"
    assert expand(["window=64", "methods=larosa"], "evaluate")[0] == "methods.larosa.window=64"


def test_in_a_sweep_a_methods_setting_is_for_the_stacks_that_hold_it():
    given = ["-m", "methods=baseline,larosa", "methods.larosa.group=3", "sparsity=0.25,0.4"]
    assert expand(given, "evaluate") == [
        "-m", "methods=baseline,larosa", "++methods.larosa.group=3",
        "++methods.larosa.sparsity=0.25,0.4",
    ]  # fmt: skip
    with pytest.raises(TrimtabError, match=r"unknown setting methods.larosa.sparsty.*sparsity"):
        expand(["-m", "methods=baseline,larosa", "methods.larosa.sparsty=0.4"], "evaluate")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["methods=larosa", "methods.larosa={sparsity:0.1,basis:none}", "speed={repeats:3}"],
            ["methods=larosa", "methods.larosa.sparsity=0.1", "methods.larosa.basis=none",
             "speed.repeats=3"],
        ),
        (["larosa={sparsity:0.1}", "-m"], ["-m", "++methods.larosa.sparsity=0.1"]),
        (
            ["serving={requests:[1,2]}", "generation={new_tokens:8}", "serving={}"],
            ["serving.requests=[1,2]", "generation.new_tokens=8"],
        ),
        (["methods.larosa=3", "speed=[3]"], ["methods.larosa=3", "speed=[3]"]),
        (
            ["tracking={project: 1e3,entity:2026_11,folder:true}", "quality={tasks:[1e3,2]}"],
            ["tracking.project='1e3'", "tracking.entity='2026_11'", "tracking.folder='true'",
             "quality.tasks=['1e3',2]"],
        ),
        (
            ["tracking={project:'a,b',entity:\"1e3\"}", "hydra.job={name:1e3,chdir:no}"],
            ["tracking.project=a\\,b", "tracking.entity='1e3'", "hydra.job={name:'1e3',chdir:no}"],
        ),
    ],
)  # fmt: skip
def test_settings_in_a_dictionary_are_typed_one_by_one(given, expected):
    assert expand(given, "evaluate") == expected


def test_a_sweep_over_dictionaries_is_refused_with_what_to_write():
    for given, write in (
        ("methods.larosa={sparsity:0.1},{sparsity:0.2}", "methods.larosa.sparsity=0.1,0.2"),
        ("larosa=choice({sparsity:0.1,group:3},{group:3})", "larosa.sparsity=0.1 larosa.group=3"),
        ("speed={repeats:3},{repeats:4}", "speed.repeats=3,4"),
    ):
        expected = f"{given}: name the values of each setting by itself: {write}"
        with pytest.raises(TrimtabError, match=f"^{re.escape(expected)}$"):
            expand(["-m", "methods=larosa", given], "evaluate")


def test_every_setting_is_explained_by_help():
    register()
    for name, kind in KINDS.items():
        template = OmegaConf.load(config_folder() / f"{name}.yaml").hydra.help.template
        explained = str(template)
        kinds = [kind, *(one for group in TARGETED for one in targets(group).values())]
        sections = [one for key, one in SECTIONS.items() if name == "evaluate" or key == "tracking"]
        for one in [*kinds, *sections]:
            for setting, meaning in describe(one):
                assert setting in explained
                assert " ".join(meaning.split()) in " ".join(explained.split())


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("hydra/launcher/joblib", "is not installed: pip install 'trimtab[joblib]'"),
        ("hydra/launcher/submitit_slurm", "is not installed: pip install 'trimtab[submitit]'"),
        ("hydra/launcher/worker", "no such option, did you mean workers?; there are: "),
    ],
)
def test_a_launcher_that_is_not_there_comes_with_what_to_do(missing, line):
    group, _, option = missing.rpartition("/")
    error = MissingConfigException("not found", missing_cfg_file=missing)
    assert one_line(error).startswith(f"{group}={option}: {line}")
