import json
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from trimtab.models.fingerprint import tokenizer_fingerprint
from trimtab.models.random import SPECIALS, byte_tokenizer


def merging() -> dict[str, Any]:
    """Return the content of a tokenizer with merges that its fingerprint's probe does not use."""
    content = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    model = content["model"]
    for left, right in (("z", "q"), ("zq", "v")):
        model["vocab"][left + right] = max(model["vocab"].values()) + 1000
        model["merges"].append([left, right])
    return content


def tokenizer_of(content: dict[str, Any], **options: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**SPECIALS, **options})


def test_the_fingerprint_of_a_tokenizer_sees_ids_splits_and_start_tokens():
    content = merging()
    first = tokenizer_fingerprint(tokenizer_of(content))
    vocab = content["model"]["vocab"]
    exchanged = vocab | {"w": vocab["o"], "o": vocab["w"]}
    swapped = {**content, "model": {**content["model"], "vocab": exchanged}}
    lower = {**content, "normalizer": {"type": "Lowercase"}}
    others = [*map(tokenizer_of, (swapped, lower)), tokenizer_of(content, bos_token=None)]
    assert len({first, *map(tokenizer_fingerprint, others)}) == 4


@pytest.mark.parametrize("part", ["merge", "normalizer", "pre_tokenizer", "decoder", "cleaning"])
def test_the_fingerprint_of_a_tokenizer_sees_what_no_probe_would_show(part):
    content, options = merging(), {}
    first = tokenizer_fingerprint(tokenizer_of(content))
    replacing = {"type": "Replace", "pattern": {"String": "zqv"}, "content": "v"}
    if part == "merge":
        content["model"]["merges"].pop()
    elif part == "pre_tokenizer":
        split = {"type": "Split", "pattern": {"String": "z"}, "behavior": "Isolated"}
        both = [{**split, "invert": False}, content[part]]
        content[part] = {"type": "Sequence", "pretokenizers": both}
    elif part == "decoder":
        content[part] = {"type": "Sequence", "decoders": [content[part], replacing]}
    elif part == "cleaning":
        words = {"type": "WordLevel", "vocab": {"x": 0, ".": 1, "?": 2}, "unk_token": "?"}
        content |= {"model": words, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
        first = tokenizer_fingerprint(tokenizer_of(content))
        options = {"clean_up_tokenization_spaces": True}
    else:
        content[part] = replacing
    assert tokenizer_fingerprint(tokenizer_of(content, **options)) != first


def test_the_fingerprint_of_a_tokenizer_survives_saving_and_use(tmp_path):
    tokenizer = tokenizer_of(merging())
    first = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "word"], padding=True, truncation=True, max_length=3)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.model_max_length = 7
    tokenizer.pad_token = "</s>"
    assert json.loads(tokenizer.backend_tokenizer.to_str())["padding"] is not None
    assert tokenizer_fingerprint(tokenizer) == first
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == first
    code = (
        "import sys; from transformers import AutoTokenizer; "
        "from trimtab.models.fingerprint import tokenizer_fingerprint as of; "
        "print(of(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == first


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer, LlamaTokenizer, GemmaTokenizer])
def test_tokenizers_that_transformers_builds_anew_keep_their_fingerprint(tmp_path, kind):
    model = merging()["model"]
    vocab = {**model["vocab"], "<unk>": 5000}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = kind(vocab=vocab, merges=merges, **SPECIALS, unk_token="<unk>", add_bos_token=True)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is kind
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_a_tokenizer_with_parts_in_python_has_a_fingerprint():
    class Whole:
        def pre_tokenize(self, text: Any) -> None:
            pass

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Whole())
    with pytest.raises(Exception, match="cannot be serialized"):
        tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer_fingerprint(tokenizer)) == 64
