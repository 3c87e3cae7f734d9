"""The public interface on models that somebody else has built."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import trimtab
from tests.conftest import tiny
from trimtab.corpus import Corpus
from trimtab.evaluation.generators import TransformersGenerator
from trimtab.evaluation.schema import SCHEMA
from trimtab.evaluation.workload import Prompt
from trimtab.generation.transformers import set_aside
from trimtab.models.random import SPECIALS, byte_tokenizer

SMALL = {"tokens": 512, "probe_tokens": 256, "window": 64}
WORDS = {"size": 20, "tokens": 128, "validation_tokens": 128, "window": 64}
TEXTS = [" ".join(f"word{(n * 7 + i * i) % 97}" for i in range(300)) for n in range(12)]
HELD_OUT = [" ".join(f"word{(n * 5 + i * i) % 89}" for i in range(300)) for n in range(6)]
FAST = trimtab.MeasureConfig(
    quality=trimtab.QualityConfig(
        windows=2, window_bytes=256, context_bytes=32, compression_windows=2
    ),
    generation=trimtab.GenerationConfig(prompts=2, prompt_bytes=32, new_tokens=4),
    speed=trimtab.SpeedConfig(repeats=3, warmup=0, seconds=0),
    serving=trimtab.ServingConfig(requests=[2], prompt_bytes=[16, 48], new_tokens=[2, 4]),
)

FAST_SECTIONS = ("quality", "generation", "speed", "serving")


def built() -> LlamaForCausalLM:
    """Return a model as a user may have it: in training mode, with gradients."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        attention_dropout=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def larosa(tokenizer) -> trimtab.Artifact:
    return trimtab.calibrate(built(), tokenizer, trimtab.LaRoSA(**SMALL), TEXTS)


@pytest.fixture(scope="module")
def drafts(tokenizer) -> trimtab.Artifact:
    method = trimtab.AdaptiVocab(mode="draft", **WORDS)
    return trimtab.calibrate(built(), tokenizer, method, TEXTS)


def state(model: LlamaForCausalLM) -> tuple[Any, ...]:
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [parameter.requires_grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
        model.config._attn_implementation,
    )


def same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    weights = all(torch.equal(first[0][name], tensor) for name, tensor in second[0].items())
    return weights and first[1:] == second[1:]


def test_the_five_lines(tokenizer, tmp_path):
    model = built()
    before, seen = state(model), []
    model.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    artifact = trimtab.calibrate(
        model, tokenizer, trimtab.LaRoSA(sparsity=0.25, selection="topk", **SMALL), TEXTS
    )
    artifact.save(tmp_path / "my-artifact")
    artifact = trimtab.load(tmp_path / "my-artifact")
    with trimtab.apply(model, tokenizer, [artifact, trimtab.VAttention()]) as optimized:
        first, second = optimized.generate(["word1", "word2 word3"], max_new_tokens=6)
    assert (len(first.tokens), len(second.tokens)) == (6, 6)
    assert artifact.method == trimtab.LaRoSA(sparsity=0.25, selection="topk", **SMALL)
    assert same(before, state(model))
    assert seen


def test_a_model_needs_no_tokenizer_to_be_loaded(tmp_path):
    for name, content, reason in (
        ("none", None, "the folder has no config.json; expected a model$"),
        ("odd", {"model_type": "nonsense"}, "loaded as a causal language model: .*`nonsense`"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        if content:
            (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(trimtab.ArtifactError, match=reason) as found:
            trimtab.load_model(folder)
        assert "tokenizer" not in str(found.value)


def test_a_calibration_does_not_depend_on_the_mode_the_model_was_left_in(tokenizer, larosa):
    quiet = built().eval().requires_grad_(False)
    again = trimtab.calibrate(quiet, tokenizer, trimtab.LaRoSA(**SMALL), TEXTS)
    assert again.key == larosa.key
    assert (again.parameters, again.statistics) == (larosa.parameters, larosa.statistics)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode]
)
def test_modes_of_pytorch_that_the_caller_has_set_change_nothing(tokenizer, larosa, mode):
    method = trimtab.AdaptiVocab(mode="full", max_bpb_increase=None, **WORDS)
    words = trimtab.calibrate(built(), tokenizer, method, TEXTS)
    first, second = built(), built()
    with mode():
        again = trimtab.calibrate(first, tokenizer, trimtab.LaRoSA(**SMALL), TEXTS)
        adapted = trimtab.calibrate(second, tokenizer, method, TEXTS)
    assert (again.parameters, again.statistics) == (larosa.parameters, larosa.statistics)
    assert all(torch.equal(adapted.tensors[name], one) for name, one in words.tensors.items())
    for stack in ([larosa], [larosa, trimtab.VAttention()]):
        with trimtab.apply(first, tokenizer, stack) as optimized:
            expected = [one.tokens for one in optimized.generate(["word1"], max_new_tokens=8)]
        with mode(), trimtab.apply(first, tokenizer, stack) as optimized:
            found = optimized.generate(["word1"], max_new_tokens=8)
            assert [one.tokens for one in found] == expected


def test_a_model_loaded_under_inference_mode_is_refused_in_one_line(tokenizer):
    with torch.inference_mode():
        model = built()
    with pytest.raises(trimtab.MisfitError, match="loaded under torch.inference_mode"):
        trimtab.calibrate(model, tokenizer, trimtab.LaRoSA(**SMALL), TEXTS)


def test_text_of_a_list_calibrates_and_validates(larosa):
    documents = larosa.corpus["documents"]
    assert [len(documents[split]) for split in ("calibration", "validation", "test")] == [10, 2, 0]
    assert larosa.statistics["thresholds"] == "validation"


@pytest.mark.parametrize(
    "texts", ["one text", [], ["  "], [3], None, 3, {"a text": 1}, {"a text"}, b"a text"]
)
def test_what_is_no_list_of_texts_is_refused(tokenizer, texts):
    with pytest.raises(trimtab.TrimtabError, match="^texts"):
        trimtab.calibrate(built(), tokenizer, trimtab.LaRoSA(**SMALL), texts)


def test_the_same_tokens_from_our_engine_and_from_transformers(tokenizer, larosa, drafts):
    model, prompts = built(), ["word1 word", "word22 word33 word4"]
    found = []
    for stack in (
        [larosa],
        [larosa, trimtab.VAttention()],
        [drafts, larosa],
        [drafts, larosa, trimtab.VAttention(layout="mega")],
    ):
        with trimtab.apply(model, tokenizer, stack) as optimized:
            made = optimized.generate(prompts, max_new_tokens=[5, 12])
            found.append([one.tokens for one in made])
            assert [one.text for one in made] == [
                tokenizer.decode(one.tokens, skip_special_tokens=True) for one in made
            ]
    assert found == [found[0]] * 4
    assert [len(tokens) for tokens in found[0]] == [5, 12]


def test_stop_strings_and_sampling_are_the_same_words_for_both(tokenizer, larosa):
    model = built()
    for stack in ([larosa], [larosa, trimtab.VAttention()]):
        with trimtab.apply(model, tokenizer, iter(stack)) as optimized:
            assert optimized.stack.names == ["larosa", "vattention"][: len(stack)]
            (free,) = optimized.generate(["word1"], max_new_tokens=12)
            stop = tokenizer.decode(free.tokens[3:5])
            for several in ([stop], iter([stop])):
                (stopped,) = optimized.generate(["word1"], max_new_tokens=12, stop=several)
                assert stopped.finish == "stop_string"
                assert stopped.text == free.text[: free.text.index(stop)]
            drawing = trimtab.Sampling(temperature=1.0, seed=5)
            drawn = [
                optimized.generate(["word1"], max_new_tokens=12, sampling=drawing)[0].tokens
                for _ in range(2)
            ]
            assert drawn[0] == drawn[1] != free.tokens


@pytest.mark.parametrize("stack", [[], [trimtab.VAttention()]])
def test_a_stop_string_does_not_begin_in_the_prompt(tokenizer, stack):
    with trimtab.apply(built(), tokenizer, stack) as optimized:
        (free,) = optimized.generate(["word1"], max_new_tokens=12)
        (stopped,) = optimized.generate(["word1"], max_new_tokens=12, stop=["1" + free.text[:2]])
        assert stopped.tokens == free.tokens


@pytest.mark.parametrize("stack", [[], [trimtab.VAttention()]])
def test_seeds_beside_each_other_draw_nothing_alike(tokenizer, stack):
    with trimtab.apply(built(), tokenizer, stack) as optimized:
        drawn = [
            tuple(found.tokens)
            for seed in (0, 1)
            for found in optimized.generate(
                ["word1"] * 4,
                max_new_tokens=12,
                sampling=trimtab.Sampling(temperature=1.0, seed=seed),
            )
        ]
    assert len(set(drawn)) == 8


def test_one_text_is_no_list_of_prompts(tokenizer, larosa):
    with trimtab.apply(built(), tokenizer, [larosa]) as optimized:
        with pytest.raises(trimtab.TrimtabError, match="put a single one in a list"):
            optimized.generate("word1")
        with pytest.raises(trimtab.TrimtabError, match="max_new_tokens=0"):
            optimized.generate(["word1"], max_new_tokens=0)


def test_what_does_not_fit_the_model_is_refused_and_a_text_ends_where_it_ends(tokenizer, larosa):
    for stack in ([larosa], [larosa, trimtab.VAttention()]):
        with trimtab.apply(built(), tokenizer, stack) as optimized:
            for prompts, message in (
                ([[]], "prompt 0 has no tokens"),
                ([[1], [300]], "prompt 1 has the token 300: expected ids from 0 to 299"),
                ([[1] * 1024], "prompt 0 has 1024 tokens: .* 1024, including at least one gen"),
                ([[1.5]], "expected a text or token ids"),
            ):
                with pytest.raises(trimtab.TrimtabError, match=message):
                    optimized.generate(prompts)
            (made,) = optimized.generate([[1] * 1020], max_new_tokens=64)
            assert (len(made.tokens), made.finish) == (4, "capacity")


def test_what_cannot_be_applied_is_refused_by_name(tokenizer, larosa):
    model = built()
    with pytest.raises(trimtab.TrimtabError, match="larosa is applied by its artifact"):
        trimtab.apply(model, tokenizer, [trimtab.LaRoSA()])
    with pytest.raises(trimtab.TrimtabError, match="methods is a Artifact: expected several; put"):
        trimtab.apply(model, tokenizer, larosa)
    with pytest.raises(trimtab.MisfitError, match="larosa is in the stack twice"):
        trimtab.apply(model, tokenizer, [larosa, larosa])
    other = tiny().model
    with (
        pytest.raises(trimtab.ArtifactError, match="another model"),
        trimtab.apply(other, tokenizer, [larosa]),
    ):
        pass
    optimized = trimtab.apply(model, tokenizer, [larosa])
    for use in (
        lambda: optimized.generate(["word1"]),
        lambda: trimtab.measure(optimized, HELD_OUT, FAST),
    ):
        with pytest.raises(RuntimeError, match="no method is at work"):
            use()
    with optimized:
        with pytest.raises(RuntimeError, match="enter the context once"), optimized:
            pass
        assert optimized.tokenizer is tokenizer


@pytest.mark.parametrize("name", ["DataParallel", "LlamaModel", "Linear"])
def test_what_generates_no_text_is_refused_and_told_from_a_wrapper(tokenizer, drafts, name):
    model = built().eval()
    compiled = torch.compile(model)
    given = {
        "DataParallel": torch.nn.DataParallel(model), "LlamaModel": model.model,
        "Linear": torch.nn.Linear(3, 3),
    }[name]  # fmt: skip
    for use in (
        lambda: trimtab.apply(given, tokenizer, []),
        lambda: trimtab.calibrate(given, tokenizer, drafts.method, TEXTS),
        lambda: trimtab.Engine(given, tokenizer, slots=1, max_len=8),
        lambda: trimtab.decode_kernel(given).__enter__(),
    ):
        with pytest.raises(trimtab.MisfitError, match=f"is a {name}, .* give the model inside$"):
            use()
    found = []
    for one in (model, compiled):  # which generates
        with trimtab.decode_kernel(one), trimtab.apply(one, tokenizer, []) as optimized:
            found.append(optimized.generate(["word1"], max_new_tokens=2)[0].tokens)
    assert found[0] == found[1]


def test_a_model_that_is_not_in_memory_generates_nothing(tokenizer):
    with torch.device("meta"):
        model = built().eval()
    with trimtab.apply(model, tokenizer, []) as optimized:
        for use in (
            lambda: optimized.generate(["word1"]),
            lambda: optimized.engine(slots=1),
            lambda: trimtab.VAttention().check(model),
        ):
            with pytest.raises(trimtab.MisfitError, match="not in memory: .* meta device; load"):
                use()


def test_an_artifact_serves_the_settings_and_the_tokenizer_it_was_made_for(
    tokenizer, larosa, drafts, tmp_path
):
    model, other = built(), byte_tokenizer()
    other.add_tokens(["word"])
    words = trimtab.AdaptiVocab(mode="full", max_bpb_increase=None, **WORDS)
    adapted = trimtab.calibrate(model, tokenizer, words, TEXTS)
    sparser = trimtab.LaRoSA(sparsity=0.1, **SMALL)
    for call, message in (
        (
            lambda: sparser.apply(model, tokenizer, larosa),
            "sparsity=0.4, not sparsity=0.1: use",
        ),
        (lambda: sparser.export(model, tokenizer, larosa, tmp_path / "a"), "not sparsity=0.1"),
        (lambda: words.apply(model, tokenizer, drafts), "mode=draft, .*, not mode=full"),
        (lambda: words.export(model, tokenizer, drafts, tmp_path / "b"), "mode=draft"),
        (lambda: words.apply(model, tokenizer, larosa), "is one of larosa, not of adaptivocab"),
        (lambda: words.apply(model, other, adapted), "belongs to another tokenizer"),
        (lambda: drafts.method.apply(model, other, drafts), "belongs to another tokenizer"),
        (lambda: adapted.export(model, tmp_path / "c", other), "belongs to another tokenizer"),
        (lambda: trimtab.VAttention().apply(model, tokenizer, larosa), "takes no artifact"),
        (lambda: sparser.apply(model, tokenizer, "folder"), "artifact='folder': expected an Art"),
    ):
        with pytest.raises(trimtab.TrimtabError, match=message):
            call()
    assert trimtab.calibrate(model, other, larosa.method, TEXTS).key != larosa.key


@pytest.mark.parametrize("paired", [True, False])
def test_measuring_leaves_the_model_optimized_and_then_as_it_was(tokenizer, larosa, paired):
    model = built()
    before = state(model)
    settings = {name: getattr(FAST, name) for name in FAST_SECTIONS}
    config = trimtab.MeasureConfig(paired=paired, **settings)
    with trimtab.apply(model, tokenizer, [larosa, trimtab.VAttention()]) as optimized:
        (first,) = optimized.generate(["word1"], max_new_tokens=8)
        result = trimtab.measure(optimized, HELD_OUT, config)
        (second,) = optimized.generate(["word1"], max_new_tokens=8)
        assert first.tokens == second.tokens
    assert same(before, state(model))
    assert result["schema"] == SCHEMA
    assert (result["status"], result["label"]) == ("ok", "larosa vattention")
    assert result["model"]["fingerprint"] == larosa.key.model_fingerprint
    assert result["model"]["parameters"] == model.num_parameters()
    assert result["speed"]["paired"] is paired
    assert result["sparsity"]["achieved"] > 0.2
    bits = result["quality"]["bits_per_byte"]
    assert bits["candidate"] != bits["baseline"]


@pytest.mark.parametrize("seen", [0, 1, 5])
def test_text_that_a_method_was_calibrated_on_is_no_held_out_text(
    tokenizer, larosa, drafts, capfd, seen
):
    """Of `TEXTS` some calibrate and some validate."""
    model, texts = built(), [*HELD_OUT[: 6 - seen], *TEXTS[12 - seen :]]
    with trimtab.apply(model, tokenizer, [drafts, larosa]) as optimized:
        result = trimtab.measure(optimized, texts, FAST)
    said = [one for one in result["warnings"] if "calibration" in one]
    assert (
        said
        == [
            f"{seen} of the 6 texts measured on were read by the calibration of adaptivocab and "
            "larosa: the figures may be better than on new text; measure on others"
        ][: seen > 0]
    )
    assert capfd.readouterr().err.count("read by the calibration") == len(said)


def test_an_artifact_keeps_what_copies_of_its_text_share(larosa):
    assert larosa.corpus["documents"] == Corpus.for_calibration(TEXTS).document_likenesses()


@pytest.mark.parametrize("kind", ["as it is", "unknown", "other"])
def test_text_that_the_tokenizer_changes_is_warned_of(tokenizer, kind):
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if kind == "other":
        content["normalizer"] = {"type": "Replace", "pattern": {"String": "1"}, "content": "2"}
    if kind == "unknown":
        del content["model"]["vocab"]["1"]
    changed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), **SPECIALS
    )
    with trimtab.apply(built(), changed, []) as optimized:
        result = trimtab.measure(optimized, HELD_OUT, FAST)
    count = result["quality"]["windows"]
    said = [one for one in result["warnings"] if "read as another text" in one]
    expected = [f"{count} of the {count} scored windows are read as another text"]
    assert [one.partition(":")[0] for one in said] == ([] if kind == "as it is" else expected)


def test_without_methods_baseline_and_candidate_are_the_same_model(tokenizer):
    with trimtab.apply(built(), tokenizer, []) as optimized:
        result = trimtab.measure(optimized, HELD_OUT, FAST, label="nothing")
    bits = result["quality"]["bits_per_byte"]
    assert bits["candidate"] == bits["baseline"]
    assert result["quality"]["greedy_agreement"]["estimate"] == 1
    assert (result["label"], result["kernel"]) == ("nothing", "torch")


def test_a_whole_stack_is_calibrated_step_by_step(tokenizer):
    model = built()
    words = trimtab.calibrate(
        model, tokenizer, trimtab.AdaptiVocab(mode="full", max_bpb_increase=None, **WORDS), TEXTS
    )
    with trimtab.apply(model, tokenizer, [words]) as adapted:
        sparse = trimtab.calibrate(adapted.model, adapted.tokenizer, trimtab.LaRoSA(**SMALL), TEXTS)
    with trimtab.apply(model, tokenizer, [trimtab.VAttention(), sparse, words]) as optimized:
        assert len(optimized.tokenizer) > len(tokenizer)
        (made,) = optimized.generate(["word1 word2"], max_new_tokens=8)
        assert made.text == optimized.output_tokenizer.decode(made.tokens, skip_special_tokens=True)
    with (
        pytest.raises(trimtab.ArtifactError, match="another model"),
        trimtab.apply(model, tokenizer, [sparse]),
    ):
        pass


def test_the_names_of_the_interface_are_there():
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
    with pytest.raises(AttributeError, match="module 'trimtab' has no attribute 'nonsense'"):
        _ = trimtab.nonsense


def killed_at_the_end(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_serves_one_calibration(tokenizer, larosa, tmp_path, monkeypatch):
    folder, method = tmp_path / "checkpoint", trimtab.LaRoSA(**SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.larosa.thresholds.find_thresholds", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=folder)
    for other in (
        lambda: trimtab.calibrate(tiny().model, tokenizer, method, TEXTS, checkpoint=folder),
        lambda: trimtab.calibrate(built(), tokenizer, method, TEXTS[:9], checkpoint=folder),
        lambda: trimtab.calibrate(
            built(), tokenizer, trimtab.LaRoSA(basis="pca", **SMALL), TEXTS, checkpoint=folder
        ),
    ):
        with pytest.raises(trimtab.TrimtabError, match="holds something else than this calibr"):
            other()
    stamp = (folder / "calibration.json").read_bytes()
    (folder / "calibration.json").write_bytes(stamp[:9])
    with pytest.raises(trimtab.TrimtabError, match="holds something else than this calibr"):
        trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=folder)
    (folder / "calibration.json").write_bytes(stamp)
    made = trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=folder)
    assert (made.key, made.parameters) == (larosa.key, larosa.parameters)
    assert not folder.exists()
    (tmp_path / "file").touch()
    with pytest.raises(trimtab.TrimtabError, match="file: cannot be written: Not a directory"):
        trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=tmp_path / "file")


def test_threads_with_one_checkpoint_wait_for_each_other(tokenizer, larosa, tmp_path):
    def made(model: PreTrainedModel) -> trimtab.Artifact:
        method = trimtab.LaRoSA(**SMALL)
        return trimtab.calibrate(
            model, tokenizer, method, TEXTS, checkpoint=tmp_path / "checkpoint"
        )

    models = [built() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(made, models))
    assert all(one.parameters == larosa.parameters for one in found)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"packages": {"torch": "1.0"}}, "measured with .*torch 1.0, now 2"),
        ({}, "no calibration.json says which versions"),
    ],
)
def test_what_other_versions_measured_is_measured_anew(
    tokenizer, larosa, tmp_path, monkeypatch, capsys, changed, told
):
    folder, method = tmp_path / "checkpoint", trimtab.LaRoSA(**SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.larosa.thresholds.find_thresholds", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=folder)
    stamp = json.loads((folder / "calibration.json").read_text())
    assert stamp["packages"]["torch"] == version("torch")
    stamp["packages"] = changed.get("packages")
    (folder / "calibration.json").write_text(json.dumps(stamp))
    for path in folder.rglob("*.safetensors"):
        save_file({name: tensor * 3 for name, tensor in load_file(path).items()}, path)
    capsys.readouterr()
    made = trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=folder)
    assert re.search(rf"checkpoint: {told}.*: measuring all of it anew", capsys.readouterr().err)
    assert (made.parameters, made.statistics) == (larosa.parameters, larosa.statistics)


def test_a_calibration_that_measured_nothing_leaves_no_checkpoint(tokenizer, tmp_path):
    with pytest.raises(trimtab.TrimtabError, match="windows of 512 tokens"):
        method = trimtab.LaRoSA(tokens=10_000_000)
        trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=tmp_path / "checkpoint")
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_removed_loses_no_artifact(
    tokenizer, larosa, tmp_path, monkeypatch
):
    """A volume that is mounted there is one."""
    folder, rmdir = tmp_path / "checkpoint", os.rmdir

    def busy(path: Any, **options: Any) -> None:
        if Path(path) == folder:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", busy)
    method = trimtab.LaRoSA(**SMALL)
    made = trimtab.calibrate(built(), tokenizer, method, TEXTS, checkpoint=folder)
    assert (made.key, made.parameters) == (larosa.key, larosa.parameters)
    assert folder.exists()


def test_what_is_saved_is_never_lost_and_never_mixed(larosa, drafts, tmp_path):
    larosa.save(tmp_path / "a")
    larosa.save(tmp_path / "a")
    with pytest.raises(trimtab.ArtifactError, match="holds another artifact: name another folder"):
        drafts.save(tmp_path / "a")
    assert trimtab.load(tmp_path / "a").key == larosa.key
    drafts.save(tmp_path / "a", replace=True)
    assert trimtab.load(tmp_path / "a").key == drafts.key
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    for replace in (False, True):
        with pytest.raises(trimtab.ArtifactError, match="is there and no artifact"):
            larosa.save(tmp_path / "mine", replace=replace)
    assert (tmp_path / "mine" / "precious").exists()


def test_exported_models_are_loaded_as_such(tokenizer, larosa, tmp_path):
    model = built()
    larosa.export(model, tmp_path / "sparse", tokenizer)
    loaded = trimtab.load_model(tmp_path / "sparse")
    ids = torch.tensor([[1, 2, 3, 4]])
    with trimtab.apply(model, tokenizer, [larosa]) as optimized, torch.inference_mode():
        assert torch.equal(loaded(ids).logits, optimized.model(ids).logits)
    with pytest.raises(trimtab.ArtifactError, match="is an exported model: load it with trimtab"):
        trimtab.load(tmp_path / "sparse")
    with pytest.raises(trimtab.ArtifactError, match="there is no such folder"):
        trimtab.load_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(trimtab.ArtifactError, match="cannot be loaded as a causal language model"):
        trimtab.load_model(tmp_path / "empty")
    for device in ("cuda:99", "CPU", torch.device("meta")):
        with pytest.raises(trimtab.ConfigError, match=rf"model.device={device}: "):
            trimtab.load_model(tmp_path / "sparse", device=device)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("larosa", "methods is a str: expected several"),
        (["folder"], "methods holds 'folder': load an artifact first"),
        ([trimtab.VAttention], "expected artifacts and methods, such as trimtab.VAttention"),
        ([None], "methods holds None: expected artifacts and methods"),
        (None, "methods is a NoneType: expected several"),
        ({"larosa": None}, "methods is a dict: expected several"),
    ],
)
def test_what_is_no_method_is_refused_when_it_is_given(tokenizer, methods, message):
    with pytest.raises(trimtab.TrimtabError, match=message):
        trimtab.apply(built(), tokenizer, methods)


def test_what_is_no_model_or_no_tokenizer_is_refused_in_one_line(
    tokenizer, larosa, drafts, tmp_path
):
    model, corpus = built().eval(), trimtab.Corpus.for_calibration(TEXTS)
    method = larosa.method
    wrong_model, no_tokenizer = "^model=.{1,60}: expected a model", "^tokenizer=.{1,60}: expected"
    calls: list[tuple[Callable[[Any, Any], Any], bool]] = [
        (lambda one, other: trimtab.calibrate(one, other, method, TEXTS), True),
        (lambda one, other: trimtab.calibrate(one, other, method, TEXTS, checkpoint="c"), True),
        (lambda one, other: method.calibrate(one, other, corpus), True),
        (lambda one, other: trimtab.apply(one, other, [larosa]), True),
        (lambda one, other: method.apply(one, other, larosa), False),
        (lambda one, other: drafts.method.apply(one, other, drafts), True),
        (lambda one, other: trimtab.Engine(one, other, slots=1, max_len=8), True),
        (lambda one, other: larosa.export(one, tmp_path / "a", other or 0), True),
        (lambda one, _: trimtab.decode_kernel(one).__enter__(), False),
    ]
    for call, takes_tokenizer in calls:
        for one in ("gpt2", None, tokenizer, type(model)):
            with pytest.raises(trimtab.TrimtabError, match=wrong_model):
                call(one, tokenizer)
        with pytest.raises(trimtab.TrimtabError, match="the model comes first, then the tokenizer"):
            call(tokenizer, model)
        for other in ("gpt2", None, model) if takes_tokenizer else ():
            with pytest.raises(trimtab.TrimtabError, match=no_tokenizer):
                call(model, other)
    with (
        trimtab.apply(model, tokenizer, []) as optimized,
        pytest.raises(trimtab.TrimtabError, match=r"^baseline='gpt2': expected a model"),
    ):
        trimtab.measure(optimized, HELD_OUT, FAST, baseline="gpt2")
    with pytest.raises(
        trimtab.TrimtabError, match=r"^config=.{1,60}: expected the config of a mod"
    ):
        trimtab.VirtualCache(model, batch=1, max_len=8, dtype=torch.float32)
    for call in (trimtab.load, trimtab.load_model, larosa.save):
        with pytest.raises(trimtab.TrimtabError, match=r"^folder=.{1,60}: expected a path$"):
            call(larosa)


def test_a_place_that_cannot_be_written_is_named_as_it_was_given(tokenizer, larosa, tmp_path):
    (tmp_path / "file").touch()
    for place in (f"{tmp_path}/file/deep/a", "/proc/nowhere/a"):
        for name, call in (
            ("folder", lambda place=place: larosa.save(place)),
            ("folder", lambda place=place: larosa.export(built(), place)),
            (
                "checkpoint",
                lambda place=place: trimtab.calibrate(
                    built(), tokenizer, larosa.method, TEXTS, checkpoint=place
                ),
            ),
        ):
            with pytest.raises(trimtab.TrimtabError, match=f"^{name}={place}: cannot be written: "):
                call()


def test_wrong_arguments_of_the_other_functions_are_named(tokenizer, larosa):
    with pytest.raises(trimtab.TrimtabError, match="expected a method, such as trimtab.LaRoSA"):
        trimtab.calibrate(built(), tokenizer, trimtab.LaRoSA, TEXTS)
    model = built()
    with trimtab.apply(model, tokenizer, [larosa]) as optimized:
        with pytest.raises(trimtab.TrimtabError, match="expected a MeasureConfig"):
            trimtab.measure(optimized, HELD_OUT, {"paired": False})
        with pytest.raises(trimtab.TrimtabError, match="baseline is the optimized model itself"):
            trimtab.measure(optimized, HELD_OUT, FAST, baseline=model)
        with pytest.raises(trimtab.TrimtabError, match="baseline is another model"):
            trimtab.measure(optimized, HELD_OUT, FAST, baseline=tiny().model)
        for slots in (0, "3", 2.5, True):
            with pytest.raises(trimtab.TrimtabError, match=f"slots={slots!r}: expected a whole"):
                optimized.generate(["word1"], slots=slots)
        with pytest.raises(trimtab.TrimtabError, match="max_len=0: expected a whole number"):
            optimized.engine(slots=1, max_len=0)
        with pytest.raises(trimtab.TrimtabError, match="sampling='greedy': expected a Sampling"):
            optimized.generate(["word1"], sampling="greedy")
    with pytest.raises(trimtab.TrimtabError, match="cache={}: expected a trimtab.VAttention, or"):
        trimtab.Engine(model, tokenizer, slots=1, max_len=8, cache={})
    with pytest.raises(trimtab.TrimtabError, match="documents holds 'a': expected Documents"):
        trimtab.Corpus("mine", ["a"], 0.7, 0.1)
    for share in (0.7, -0.1, float("nan")):
        said = f"calibration={share} and validation={share}: expected shares"
        with pytest.raises(trimtab.TrimtabError, match=said):
            trimtab.Corpus("mine", [], share, share)
    with pytest.raises(trimtab.ConfigError, match="quality=.*expected a QualityConfig"):
        trimtab.MeasureConfig(quality={"windows": 3})
    assert trimtab.LaRoSA(sparsity=np.float64(0.25), tokens=np.int64(1024)).sparsity == 0.25


ODD = {
    "suppress_tokens": [5, 97], "begin_suppress_tokens": [5], "forced_bos_token_id": 7,
    "forced_eos_token_id": 7, "guidance_scale": 3.0, "max_time": 0.0, "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 3, "stop_strings": ["a"], "penalty_alpha": 0.6,
    "cache_implementation": "static", "dola_layers": "high", "num_beams": 3, "min_new_tokens": 50,
    "min_length": 99, "max_length": 3, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1,
    "bad_words_ids": [[5]], "sequence_bias": [[[5], 10.0]], "do_sample": True, "top_k": 3,
    "exponential_decay_length_penalty": (1, 2.0), "use_cache": False, "assistant_early_exit": 1,
    "return_dict_in_generate": True, "token_healing": True, "prefill_chunk_size": 3,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 20.0},
}  # fmt: skip


@pytest.mark.parametrize("setting", ODD)
def test_no_setting_of_a_checkpoint_acts_on_one_route_alone(tokenizer, setting):
    found = []
    for odd in ({}, {setting: ODD[setting]}):
        model = built().eval()
        model.generation_config = GenerationConfig(eos_token_id=2)
        vars(model.generation_config).update(odd)
        assert set(set_aside(model)) == set(odd)
        for stack in ([], [trimtab.VAttention()]):
            with trimtab.apply(model, tokenizer, stack) as optimized:
                for sampling in (None, trimtab.Sampling(temperature=1.0, seed=1)):
                    (made,) = optimized.generate(["word"], max_new_tokens=6, sampling=sampling)
                    found.append(made.tokens)
        prompt = Prompt("d", "word1", "word2")
        found.append(TransformersGenerator(model, tokenizer).greedy(prompt, 6))
    assert found[:5] == found[5:]
    assert found[0] == found[2]


def test_a_models_generation_config_changes_neither_route(tokenizer, larosa):
    found = []
    for odd in (
        GenerationConfig(eos_token_id=2),
        GenerationConfig(
            eos_token_id=2, num_return_sequences=2, num_beams=2, forced_eos_token_id=7,
            max_time=0.0, return_dict_in_generate=True, repetition_penalty=3.0, suppress_tokens=[5],
        ),
        None,
    ):  # fmt: skip
        model = built()
        model.generation_config = odd
        for stack in ([larosa], [larosa, trimtab.VAttention()]):
            with trimtab.apply(model, tokenizer, stack) as optimized:
                (made,) = optimized.generate(["word1"], max_new_tokens=10)
                found.append(made.tokens)
        assert model.generation_config is odd
    assert all(tokens == found[0] for tokens in found[:4])


def test_a_baseline_ends_texts_as_the_optimized_model_does(tokenizer):
    model, baseline = built().eval(), built().eval()
    greedy = "trimtab.evaluation.metrics.greedy.Greedy"
    config = dataclasses.replace(FAST, metrics={"greedy": greedy})

    def agreement() -> float:
        with trimtab.apply(model, tokenizer, [trimtab.VAttention()]) as optimized:
            found = trimtab.measure(optimized, HELD_OUT, config, baseline=baseline)
        return found["quality"]["greedy_agreement"]["estimate"]

    prompt = tokenizer(HELD_OUT[0][:32], return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, -4:]
    for own in (GenerationConfig(eos_token_id=tokens.tolist()), None):
        for one, other in ((baseline, model), (model, baseline)):
            one.generation_config, other.generation_config = own, GenerationConfig(eos_token_id=2)
            assert agreement() == 1.0
            assert one.generation_config is own
