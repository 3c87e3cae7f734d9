"""lm-eval's tasks, on a tiny model and tasks of a few lines; but for one test they need lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tests.conftest import tiny
from tests.evaluation.test_result import OVERRIDES, configured, leaves
from tests.evaluation.vocabulary import Vocabulary, extended_tokenizer
from trimtab.commands.evaluate import evaluate
from trimtab.config import QualityConfig
from trimtab.corpus import encode
from trimtab.errors import ConfigError
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.intervals import rate_difference
from trimtab.evaluation.schema import json_schema
from trimtab.larosa import LaRoSA
from trimtab.models.random import byte_tokenizer
from trimtab.stack import Stack

BASE, MORE = byte_tokenizer(), extended_tokenizer()
TEXT = "The following operations are the same as those of the other expressions in the list. "
DECLARED = {
    "operations": {
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer", "num_fewshot": 1, "fewshot_split": "test",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    },
    "continuations": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}
        ],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "upper", "filter": [{"function": "uppercase"}, {"function": "take_first"}]},
        ],
    },
    "corpus": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
    },
    "one": {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}"},
    "long": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}",
        "generation_kwargs": {"max_gen_toks": 10**6},
    },
    "remote": {"output_type": "loglikelihood", "dataset_path": "nobody/nothing"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder of tasks, their data in a file each."""
    root = tmp_path_factory.mktemp("tasks")
    for name, declared in DECLARED.items():
        documents = [
            {
                "text": TEXT[number:] + TEXT[: 60 - number],
                "choices": [TEXT[start : start + 4] for start in range(number, number + 3)],
                "answer": number % 3,
            }
            for number in range(1 if name == "one" else 24)
        ]
        data = root / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        task = {"task": name, "test_split": "test", **source, **declared}
        (root / f"{name}.yaml").write_text(json.dumps(task))  # which YAML is
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("model") / "model"
    loaded = tiny()
    loaded.model.save_pretrained(root)
    loaded.tokenizer.save_pretrained(root)
    return ["model=hub", f"model.name={root}"]


@pytest.fixture
def measured(folder, hub, tmp_path):
    pytest.importorskip("lm_eval")

    def measure(methods: dict[str, Any] | None = None, *more: str) -> dict[str, Any]:
        tasks = ["quality.tasks=[operations,continuations]", f"quality.task_folder={folder}"]
        config = configured(tmp_path, *hub, *tasks, *more)
        if methods is not None:
            config.methods = methods
        return evaluate(config, "test")

    return measure


def load(*names: str, folder: Path) -> dict[str, Any]:
    from trimtab.evaluation.harness.tasks import load_tasks

    return load_tasks(names, str(folder), tiny().model.config)


def test_the_baseline_is_scored_as_lm_eval_scores_it_and_its_copy_alike(measured, folder):
    result = measured({})
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = list(load("operations", "continuations", folder=folder).values())
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"), 0)
    model = HFLM(pretrained=tiny().model, tokenizer=byte_tokenizer())
    few = TaskManager(include_defaults=False)
    options = {**seeds, "fewshot_random_seed": 0, "task_manager": few}
    own = simple_evaluate(model, tasks=tasks, **options)["results"]
    for name, metric in (("operations", "acc_norm,none"), ("continuations", "exact_match,whole")):
        found = result["quality"]["tasks"][name]
        assert found["metric"] == metric.removesuffix(",none")
        assert found["higher_is_better"] is (name == "operations")
        assert found["baseline"] == found["candidate"] == own[name][metric]
        deviation = own[name][metric.replace(",", "_stderr,")]
        assert found["stderr"] == pytest.approx({"baseline": deviation, "candidate": deviation})
        assert found["difference"] == {"estimate": 0, "low": 0, "high": 0}
        assert (found["documents"], found["generator"]) == (24, "transformers")
    assert 0 < own["operations"]["acc_norm,none"] < 1


def test_differences_are_paired_by_document(measured):
    sparse = "methods.larosa.sparsity=0.9", "quality.task_limit=20"
    result = measured(None, *sparse)
    found, rows = result["quality"]["tasks"]["operations"], result["samples"]["tasks"]
    scores = {
        model: [
            row["score"] for row in rows if (row["task"], row["model"]) == ("operations", model)
        ]
        for model in ("baseline", "candidate")
    }
    assert scores["baseline"] != scores["candidate"]
    assert found["documents"] == 20 == len(scores["candidate"])
    for model, own in scores.items():
        assert found[model] == pytest.approx(sum(own) / 20)
    first, second = scores.values()
    assert found["difference"] == rate_difference(first, second, [1] * 20, seed=0)
    missing = {name for name, value in leaves(result).items() if value is None}
    assert missing == set(result["reasons"])
    jsonschema.validate(result, json_schema())
    unpaired = measured(None, *sparse, "paired=false")
    assert unpaired["quality"]["tasks"] == result["quality"]["tasks"]


def step_by_step(model: Any, context: list[int], answer: list[int]) -> float:
    """Return the log-likelihood of an answer, from one forward pass per token."""
    ids, found = list(context), 0.0
    for token in answer:
        found += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
        ids.append(token)
    return found


@pytest.mark.parametrize("mode", ["full", "input", "draft"])
def test_answers_are_scored_in_the_tokens_of_the_output(folder, mode):
    pytest.importorskip("lm_eval")
    from trimtab.evaluation.harness.model import ContenderLM

    loaded = tiny()
    tasks = load("operations", "continuations", folder=folder)
    task = tasks["operations"]
    task.build_all_requests(rank=0, world_size=1)
    prompts, output = {"full": (MORE, MORE), "input": (MORE, BASE), "draft": (BASE, BASE)}[mode]
    with Stack([Vocabulary(mode=mode)]).apply(loaded.model, BASE, {}) as stack:
        model = ContenderLM(Contender("candidate", loaded.model, BASE, stack))
        requests = [
            *task.instances,
            task.instances[0].__class__("loglikelihood", {}, ("", TEXT), 0),
        ]
        found = model.loglikelihood(requests)
        for request, (log_likelihood, _) in zip(requests, found, strict=True):
            context, answer = request.args
            kept = context.rstrip()  # the space after it is scored
            ids = encode(prompts, kept) or [BASE.bos_token_id]
            answer = context[len(kept) :] + answer
            expected = step_by_step(loaded.model, ids, encode(output, answer))
            assert log_likelihood == pytest.approx(expected, rel=1e-4)
        assert len(encode(prompts, TEXT)) < len(TEXT) or mode == "draft"
        generating = tasks["continuations"]
        generating.build_all_requests(rank=0, world_size=1)
        (text,) = model.generate_until(generating.instances[:1])
        ids = torch.tensor([encode(prompts, generating.instances[0].args[0])])
        expected = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert text == output.decode(expected, skip_special_tokens=True)


def test_prompts_that_a_method_leaves_dense_are_read_as_prompts(folder, corpus):
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    from trimtab.evaluation.harness.model import ContenderLM

    loaded = tiny()
    method = LaRoSA(sparsity=0.9, tokens=512, window=64, prefill="dense")  # type: ignore[arg-type]
    artifact = method.calibrate(loaded.model, BASE, corpus)
    (task,) = load("operations", folder=folder).values()
    task.build_all_requests(rank=0, world_size=1)
    with Stack([method]).apply(loaded.model, BASE, {"larosa": artifact}) as stack:
        sparse = ContenderLM(Contender("candidate", loaded.model, BASE, stack))
        found = sparse.loglikelihood(task.instances)
        one_pass = HFLM(loaded.model, tokenizer=byte_tokenizer()).loglikelihood(task.instances)
    dense = HFLM(loaded.model, tokenizer=byte_tokenizer()).loglikelihood(task.instances)
    for mine, whole, unmodified in zip(found, one_pass, dense, strict=True):
        assert whole[0] == pytest.approx(unmodified[0], abs=1e-4)  # all of it counts as a prompt
        assert mine[0] != pytest.approx(unmodified[0], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("operation", "lm-eval has no such task; it has .*operations"),
        ("remote", "cannot be loaded: .*nobody/nothing"),
        ("corpus", "none of its figures is a mean over documents"),
        ("one", "it has fewer than 2 documents"),
        ("long", "it asks for 1000000 new tokens, more than the model has positions for"),
    ],
)
def test_a_task_that_cannot_be_compared_is_refused_by_name(folder, monkeypatch, name, message):
    pytest.importorskip("lm_eval")
    from trimtab.evaluation.harness import tasks

    manager = tasks.TaskManager  # reading all of lm-eval's own takes long
    monkeypatch.setattr(
        tasks, "TaskManager", lambda **options: manager(**{**options, "include_defaults": False})
    )
    with pytest.raises(ConfigError, match=f"^quality.tasks={name}: {message}"):
        load(name, folder=folder)
    with pytest.raises(ConfigError, match="^quality.task_folder=/nowhere: expected a folder"):
        load(name, folder=Path("/nowhere"))


def test_tasks_without_the_package_are_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("trimtab.config.workload.find_spec", lambda name: None)
    told = r"quality.tasks=\['arc'\]: .*pip install 'trimtab\[lm-eval\]'"
    with pytest.raises(ConfigError, match=told):
        QualityConfig(tasks=["arc"])
    assert QualityConfig().tasks == []


def test_a_command_solves_tasks_and_names_one_that_it_cannot(command, folder, hub, tmp_path):
    pytest.importorskip("lm_eval")
    small = [one for one in OVERRIDES if not one.startswith(("methods", "on_missing"))]
    options = [*hub, *small, f"quality.task_folder={folder}", "tracking.mode=disabled"]
    done = command("evaluate.py", "methods=vattention", *options, "quality.tasks=[continuations]")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("outputs/*/*/result.json")
    result = json.loads(path.read_text("utf-8"))
    found = result["quality"]["tasks"]["continuations"]
    assert found["baseline"] == found["candidate"]  # the cache changes no text
    assert result["environment"]["packages"]["lm-eval"]
    refused = command("evaluate.py", "methods=vattention", *options, "quality.tasks=[remote]")
    assert refused.returncode == 1
    assert "quality.tasks=remote: cannot be loaded" in refused.stderr.splitlines()[-1]
