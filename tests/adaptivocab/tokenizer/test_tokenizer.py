import json
import os
import subprocess
import sys
from itertools import pairwise
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    TextIteratorStreamer,
)

from tests.adaptivocab.tokenizers import (
    ALIGNED,
    CORPUS,
    EVERY,
    ODD,
    ODD_TEXTS,
    SPECIALS,
    TEXTS,
    UNALIGNED,
    WRAPPED,
    base,
    extended,
    extender,
    mined,
    ngrams,
    odd_extended,
    odd_ngrams,
)
from tests.conftest import ROOT
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.tokenizer.characters import is_space, may_hold_digit
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender, load_tokenizer
from trimtab.adaptivocab.tokenizer.patterns import (
    DIGIT,
    GPT2,
    GPT2_DIGITS,
    LLAMA3,
    QWEN2,
    InexpressibleError,
    Pattern,
    find_pattern,
)
from trimtab.adaptivocab.tokenizer.wrapper import NGramTokenizer
from trimtab.errors import MisfitError

EXPRESSIBLE = {**ALIGNED, **UNALIGNED}
BETWEEN = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n  ",
    "\r\n",
    "7",
    ".",
    "'",
    "'s",
    "s",
    "a",
    "\u0301",
    "<s>",
    "\t",
]

every = pytest.mark.parametrize("kind", EVERY)
expressible = pytest.mark.parametrize("kind", EXPRESSIBLE)
wrapped = pytest.mark.parametrize("kind", WRAPPED)


def ids(tokenizer: PreTrainedTokenizerBase, text: str, **arguments) -> list[int]:
    return tokenizer(text, verbose=False, **arguments)["input_ids"]


def assert_exact(found: NGrams, longer: PreTrainedTokenizerBase, shorter, text: str) -> None:
    for around in (True, False):
        expected = ids(longer, text, add_special_tokens=around)
        assert found.expand(ids(shorter, text, add_special_tokens=around)) == expected, text


def mixtures(found: NGrams, tokenizer: PreTrainedTokenizerBase) -> st.SearchStrategy[str]:
    texts = [tokenizer.decode(list(ngram)) for ngram in found.tokens]
    part = st.sampled_from(texts) | st.sampled_from(BETWEEN) | st.text(max_size=3)
    return st.lists(part, max_size=16).map("".join)


@every
def test_an_extended_tokenizer_says_the_same_in_other_tokens(kind):
    @given(mixtures(ngrams(kind), base(kind)))
    @settings(max_examples=120)
    def check(text):
        assert_exact(ngrams(kind), base(kind), extended(kind), text)

    check()


@every
def test_ngrams_of_spaces_marks_and_line_ends_are_exact(kind):
    assert len(odd_ngrams(kind)) > 30

    @given(st.text(alphabet=ODD, max_size=30))
    @settings(max_examples=400)
    def check(text):
        assert_exact(odd_ngrams(kind), base(kind), odd_extended(kind), text)

    check()


@every
@pytest.mark.parametrize("of", [(ngrams, extended), (odd_ngrams, odd_extended)])
def test_the_shipped_texts_are_exact(kind, of):
    found, shorter = of[0](kind), of[1](kind)
    assert len(TEXTS) > 130
    for text in TEXTS:
        assert_exact(found, base(kind), shorter, text)


@every
def test_ngrams_save_tokens(kind):
    before = sum(len(ids(base(kind), text)) for text in CORPUS)
    after = sum(len(ids(extended(kind), text)) for text in CORPUS)
    assert after < 0.9 * before


@pytest.mark.parametrize("kind", ALIGNED)
def test_ngrams_within_and_across_pre_tokens_and_ended_by_a_line_are_among_them(kind):
    found = [extender(kind).admissible(ngram, crosses=True) for ngram in ngrams(kind).tokens]
    assert 20 < sum(found) < len(found) - 20
    used = {token for text in CORPUS for token in ids(extended(kind), text)}
    crossing = {ngrams(kind).base_size + number for number, yes in enumerate(found) if yes}
    assert len(used & crossing) > 0.8 * len(crossing)
    assert any(base(kind).decode(p).endswith("\n") for p in ngrams(kind).tokens)
    assert any(base(kind).decode(p).endswith("\n  ") for p in ngrams(kind).tokens)


@every
def test_old_ids_stay_and_new_ones_follow(kind):
    shorter, found = extended(kind), ngrams(kind)
    vocabulary = shorter.get_vocab()
    assert base(kind).get_vocab().items() <= vocabulary.items()
    assert len(shorter) == shorter.vocab_size == found.size == len(base(kind)) + 7 + len(found)
    for number, ngram in enumerate(found.tokens):
        token = "".join(base(kind).convert_ids_to_tokens(list(ngram)))
        assert vocabulary[token] == found.base_size + number
        assert shorter.convert_ids_to_tokens(found.base_size + number) == token
        assert shorter.convert_tokens_to_ids(token) == found.base_size + number
    for name in SPECIALS:
        assert getattr(shorter, f"{name}_id") == getattr(base(kind), f"{name}_id")


@every
def test_special_tokens_and_digits_are_never_part_of_an_ngram(kind):
    excluded = set(base(kind).all_special_ids)
    letters = ids(base(kind), "of", add_special_tokens=False)
    assert not excluded & {token for ngram in ngrams(kind).tokens for token in ngram}
    assert not extender(kind).admissible([*excluded, *letters], crosses=True)
    for digit in "7٣½〇":
        digits = ids(base(kind), f"of{digit}", add_special_tokens=False)
        for end in range(len(letters) + 1, len(digits) + 1):
            assert not extender(kind).admissible(digits[:end], crosses=True)
            assert not extender(kind).admissible(digits[:end], crosses=False)
    texts = [base(kind).decode(list(ngram)) for ngram in odd_ngrams(kind).tokens]
    assert not any(character.isnumeric() for text in texts for character in text)


@every
def test_a_batch_is_its_texts_padded_at_either_side(kind):
    shorter = extended(kind)
    texts = [text for text in TEXTS if text][:20]
    singles = [ids(shorter, text) for text in texts]
    assert shorter(texts)["input_ids"] == singles
    longest = max(map(len, singles))
    for side in ("left", "right"):
        batch = shorter(texts, padding=True, padding_side=side, return_tensors="pt")
        assert batch["input_ids"].shape == (20, longest)
        for row, mask, single in zip(
            batch["input_ids"], batch["attention_mask"], singles, strict=True
        ):
            rest = longest - len(single)
            kept = slice(rest, None) if side == "left" else slice(0, len(single))
            assert row[kept].tolist() == single
            assert mask.tolist() == ([0] * rest + [1] * len(single))[:: 1 if side == "left" else -1]
            assert row[mask == 0].tolist() == [shorter.pad_token_id] * rest
    fixed = shorter(texts[:2], padding="max_length", max_length=64, truncation=True)
    assert [len(row) for row in fixed["input_ids"]] == [64, 64]
    assert len(shorter(texts[0], padding=True, pad_to_multiple_of=32)["input_ids"]) % 32 == 0


@every
def test_truncation_counts_the_new_tokens_and_keeps_those_around_the_text(kind):
    shorter, text = extended(kind), CORPUS[0]
    whole = ids(shorter, text, add_special_tokens=False)
    around = len(ids(shorter, text)) - len(whole)
    head = {"llama3": 1, "sentencepiece": 1, "unigram": 1}.get(kind, 0)
    for side, kept in (("right", whole[: 20 - around]), ("left", whole[around - 20 :])):
        shorter.truncation_side = side
        cut = ids(shorter, text, truncation=True, max_length=20)
        shorter.truncation_side = "right"
        assert cut[head : head + 20 - around] == kept
        full = ids(shorter, text)
        assert cut[:head] + cut[head + 20 - around :] == full[:head] + full[head + len(whole) :]
    assert ids(shorter, "of", truncation=True, max_length=20) == ids(shorter, "of")


@every
def test_a_token_covers_the_text_of_the_base_tokens_it_stands_for(kind):
    for text in TEXTS:
        short = extended(kind)(text, return_offsets_mapping=True, verbose=False)
        long = base(kind)(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        position = 0
        for token, (start, end) in zip(short["input_ids"], short["offset_mapping"], strict=True):
            last = position + len(ngrams(kind).expand([token])) - 1
            assert (start, end) == (long[position][0], long[last][1])
            position = last + 1


@every
def test_the_chat_template_is_kept(kind):
    messages = [{"role": "user", "content": "What is the name of the object?"}]
    short = extended(kind).apply_chat_template(messages)["input_ids"]
    long = base(kind).apply_chat_template(messages)["input_ids"]
    assert len(short) < len(long)
    assert ngrams(kind).expand(short) == long


@every
def test_text_decoded_token_by_token_is_the_base_tokenizers(kind):
    for text in [*TEXTS[:60], "<s>of the</s> name\n"]:
        tokens = ids(extended(kind), text)
        for skip in (True, False):
            for end in range(len(tokens) + 1):
                expected = base(kind).decode(
                    ngrams(kind).expand(tokens[:end]), skip_special_tokens=skip
                )
                assert extended(kind).decode(tokens[:end], skip_special_tokens=skip) == expected


@pytest.mark.parametrize("kind", [*ALIGNED, "unsplit", "prefixed"])  # others lose spaces anyway
def test_streamed_text_is_the_text(kind):
    tokens = ids(extended(kind), CORPUS[1][:3000])
    streamer = TextIteratorStreamer(extended(kind))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(streamer) == base(kind).decode(ngrams(kind).expand(tokens))


LOAD = """
import json, sys
from transformers import AutoTokenizer
folder, texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
assert "trimtab" not in sys.modules
with open(texts, encoding="utf-8") as file:
    print(json.dumps([len(tokenizer), tokenizer(json.load(file))["input_ids"]]))
"""


@pytest.mark.parametrize("kind", ["llama3", "sentencepiece"])
def test_transformers_alone_loads_an_expressible_one(kind, tmp_path):
    extended(kind).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    arguments = [str(tmp_path), str(tmp_path / "texts.json")]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    expected = [ngrams(kind).size, [ids(extended(kind), text) for text in TEXTS]]
    assert json.loads(loaded.stdout) == expected


BUILD = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.tokenizer.characters import is_space, may_hold_digit
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
folder = Path(sys.argv[1])
size, tokens = json.loads((folder / "ngrams.json").read_text())
found = NGrams(size, tuple(map(tuple, tokens)))
base = AutoTokenizer.from_pretrained(folder / "base")
TokenizerExtender(base).build(found).save_pretrained(folder / "other")
"""


def test_another_process_builds_the_same_file(tmp_path):
    found = ngrams("llama3")
    extended("llama3").save_pretrained(tmp_path / "one")
    base("llama3").save_pretrained(tmp_path / "base")
    (tmp_path / "ngrams.json").write_text(json.dumps([found.base_size, found.tokens]))
    subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
        timeout=120,
    )
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


@every
def test_either_kind_is_stored_and_loaded(kind, tmp_path, capfd):
    extended(kind).save_pretrained(tmp_path)
    assert "holes" not in "".join(capfd.readouterr())
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, NGramTokenizer) == (kind in WRAPPED)
    assert getattr(loaded, "is_wrapper", False) == (kind in WRAPPED)
    assert len(loaded) == ngrams(kind).size
    assert loaded.chat_template == base(kind).chat_template
    for text in TEXTS:
        assert ids(loaded, text) == ids(extended(kind), text)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        again = json.loads((tmp_path / "again" / name).read_text("utf-8"))
        assert again == json.loads((tmp_path / name).read_text("utf-8"))


@expressible
def test_a_token_added_later_gets_an_id_of_its_own(kind, tmp_path):
    extended(kind).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    loaded.add_tokens(["<new>"])
    assert ids(loaded, "<new>", add_special_tokens=False)[-1] == ngrams(kind).size


def test_a_wrapper_takes_no_token_that_would_have_the_id_of_an_ngram():
    shorter = extender("unigram").build(NGrams(len(base("unigram")), ngrams("unigram").tokens))
    with pytest.raises(MisfitError, match="<new>: the ids after .* are those of n-grams"):
        shorter.add_tokens(["<new>"])


@wrapped
def test_a_wrapper_refuses_what_it_cannot_do(kind):
    shorter = extended(kind)
    for text, other in (("a", "b"), ([("a", "b")], None)):
        with pytest.raises(NotImplementedError, match="not pairs"):
            shorter(text, other)
    with pytest.raises(NotImplementedError, match="return_overflowing_tokens"):
        shorter("a", return_overflowing_tokens=True)
    with pytest.raises(NotImplementedError, match="truncation='only_second': .* use 'only_first'"):
        shorter("a b c d", truncation="only_second", max_length=1)


@wrapped
def test_a_wrapper_takes_what_is_no_text_and_no_token_as_the_base_does(kind):
    shorter, longer = extended(kind), base(kind)
    for arguments, error in (
        ({"text": 5}, ValueError),
        ({"text": ["a", 5]}, TypeError),
        ({"text": "a", "is_split_into_words": True}, TypeError),
        ({"text": ["a b c d", "a"], "padding": True, "padding_side": "middle"}, ValueError),
    ):
        for tokenizer in (longer, shorter):
            with pytest.raises(error):
                tokenizer(**arguments)
    beyond, token = len(shorter) + 5, longer("a", add_special_tokens=False)["input_ids"][-1]
    for tokenizer in (longer, shorter):
        assert tokenizer.decode([beyond]) == ""
        assert tokenizer.decode([token, beyond, token]) == longer.decode([token, token])
        assert tokenizer.convert_ids_to_tokens(beyond) is None
        assert tokenizer.convert_ids_to_tokens([beyond, token])[0] is None


@wrapped
def test_a_wrapper_takes_the_leftmost_and_then_the_longest(kind):
    a, b, c, d = (ids(base(kind), text, add_special_tokens=False)[-1] for text in "eaio")
    found = NGrams(len(base(kind)), ((a, b), (b, c), (a, b, c, d), (c, d)))
    shorter = extender(kind).build(found)
    first = found.base_size
    spans = shorter.matcher([a, b, c, b, c, d, a, b, c, d, a])
    assert [token for *_, token in spans] == [first, c, first + 1, d, first + 2, a]


@every
def test_the_tokens_of_a_text_are_its_ids_by_name(kind):
    text = "the name of the object"
    tokens = extended(kind).tokenize(text)
    assert len(tokens) < len(base(kind).tokenize(text))
    expected = ids(extended(kind), text, add_special_tokens=False)
    assert extended(kind).convert_tokens_to_ids(tokens) == expected
    assert extended(kind).encode(text, add_special_tokens=False) == expected


@every
def test_words_given_apart_are_exact(kind):
    words = ["of", "the", "name"]
    long = base(kind)(words, is_split_into_words=True)["input_ids"]
    assert ngrams(kind).expand(extended(kind)(words, is_split_into_words=True)["input_ids"]) == long


def test_what_each_file_can_express_is_known():
    for kind in EVERY:
        assert extender(kind).expressible == (kind in EXPRESSIBLE), kind
        assert extender(kind).aligned == (kind in ALIGNED), kind
        assert bool(extender(kind).reason) == (kind in WRAPPED), kind
    assert "a space before every text" in extender("prefixed").reason
    assert "Unigram" in extender("unigram").reason


def test_segments_are_numbered_by_pre_token():
    found, numbers = extender("gpt2").segment("name of\n<s>the")
    assert found == ids(base("gpt2"), "name of\n<s>the")
    words = ["", "", "", "", ""]
    for token, number in zip(found, numbers, strict=True):
        words[number] += base("gpt2").decode([token])
    assert words == ["name", " of", "\n", "<s>", "the"]
    assert all(before <= after for before, after in pairwise(numbers))


@every
def test_the_same_ngram_twice_is_refused(kind):
    ngram = next(one for one in ngrams(kind).tokens if len(one) == 2)
    with pytest.raises(MisfitError, match="is the same text as"):
        extender(kind).build(NGrams(len(base(kind)), (ngram, ngram)))


def test_other_tokens_of_the_same_text_are_refused():
    vocabulary = base("unsplit").get_vocab()
    left, right = next(
        (left, right)
        for left in vocabulary
        for right in vocabulary
        if len(left) == len(right) == 2
        and left[1] == right[0]
        and left + right[1] not in vocabulary
    )
    strings = [(left, right[1]), (left[0], right)]
    found = tuple((vocabulary[one], vocabulary[other]) for one, other in strings)
    with pytest.raises(MisfitError, match="1 n-grams that cannot be added: .*is the same text as"):
        extender("unsplit").build(NGrams(len(base("unsplit")), found))


@pytest.mark.parametrize(
    ("kind", "ngram", "message"),
    [
        ("gpt2", lambda of: (of("h"), of("e"), of("h")), "may not become a token"),
        ("sentencepiece", lambda of: (of("q"), of("z"), of("q")), "needs the n-gram"),
        ("sentencepiece", lambda of: (of("q"), of("<0xE2>")), "may not become a token"),
        ("sentencepiece", lambda of: (of("q"), of("<unk>")), "may not become a token"),
        ("gpt2", lambda of: (of("q"), of("</s>")), "may not become a token"),
        ("gpt2", lambda of: (of("q"), 5000), "may not become a token"),
        ("gpt2", lambda of: (of("q"),), "may not become a token"),
    ],
)
def test_an_ngram_that_cannot_be_a_token_is_named(kind, ngram, message):
    found = ngram(base(kind).convert_tokens_to_ids)
    with pytest.raises(MisfitError, match=message) as error:
        extender(kind).build(NGrams(len(base(kind)), (found,)))
    assert str(found) in str(error.value)


def test_ids_of_the_base_are_not_given_away():
    with pytest.raises(MisfitError, match="n-grams begin at id 602 .* ids end at 602"):
        extender("llama3").build(NGrams(602, ()))


def test_a_pattern_without_its_lookaheads_is_found_out(monkeypatch):
    monkeypatch.setattr("trimtab.adaptivocab.tokenizer.patterns.Pattern.lookahead", lambda *_: "")
    with pytest.raises(MisfitError, match="n-grams that change the base tokens around them"):
        extender("gpt2").build(ngrams("gpt2"))


def changed(kind: str, **model) -> PreTrainedTokenizerBase:
    file = json.loads(base(kind).backend_tokenizer.to_str())
    file["model"] |= model
    backend = Tokenizer.from_str(json.dumps(file))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS)


def test_a_vocabulary_that_its_merges_do_not_make_is_wrapped():
    file = json.loads(base("gpt2").backend_tokenizer.to_str())
    vocabulary = file["model"]["vocab"]
    token = max(vocabulary, key=vocabulary.__getitem__)
    merges = [merge for merge in file["model"]["merges"] if "".join(merge) != token]
    without = TokenizerExtender(changed("gpt2", merges=merges))
    assert without.reason == f"its token {token!r} is not made by its merges"
    assert "dropout" in TokenizerExtender(changed("gpt2", dropout=0.1)).reason
    assert "ignore_merges" in TokenizerExtender(changed("unsplit", ignore_merges=True)).reason


@pytest.mark.parametrize(
    ("own", "kind", "settings"),
    [
        (GPT2Tokenizer, "gpt2", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}),
        (Qwen2Tokenizer, "qwen2", {"unk_token": None, "eos_token": "</s>", "pad_token": "<pad>"}),
        (LlamaTokenizer, "sentencepiece", {"add_bos_token": True, "add_eos_token": True}),
        (GemmaTokenizer, "sentencepiece", {}),
    ],
)
def test_a_class_of_its_own_is_not_needed(own, kind, settings, tmp_path):
    model = json.loads(base(kind).backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    longer = own(vocab=model["vocab"], merges=merges, **settings)
    found = NGrams(len(longer), mined(TokenizerExtender(longer), CORPUS, 100))
    TokenizerExtender(longer).build(found).save_pretrained(tmp_path)
    shorter = AutoTokenizer.from_pretrained(tmp_path)
    assert type(shorter) is PreTrainedTokenizerFast
    assert shorter.special_tokens_map == longer.special_tokens_map
    for text in TEXTS:
        assert_exact(found, longer, shorter, text)
    assert len(ids(shorter, CORPUS[0])) < 0.95 * len(ids(longer, CORPUS[0]))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPACES = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def test_pre_tokenizers_that_never_split_are_known():
    unsplit = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    assert find_pattern(None, None) is None
    assert find_pattern(unsplit, None) is None
    assert find_pattern(BYTES, None) is None
    assert find_pattern(SPACES, REPLACED) is None


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, None),
        (SPACES, None),
        (SPACES, {**REPLACED, "content": "  "}),
        ({"type": "Sequence", "pretokenizers": [SPACES, BYTES]}, None),
        ({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]}, None),
        ({"type": "Whitespace"}, None),
    ],
)
def test_other_pre_tokenizers_are_not_guessed_at(pre_tokenizer, normalizer):
    with pytest.raises(InexpressibleError, match="is not one that is known"):
        find_pattern(pre_tokenizer, normalizer)


def test_numbers_and_spaces_are_those_of_the_library():
    text = "".join(f"a{chr(code)}" for code in range(0x20000) if not 0xD800 <= code < 0xE000)
    split = pre_tokenizers.Split(Regex(f"[{DIGIT}]"), "isolated").pre_tokenize_str(text)
    assert split == pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(text)
    spaces = pre_tokenizers.Split(Regex(r"[^\s]+"), "removed").pre_tokenize_str(text)
    assert {space for space, _ in spaces} == {space for space in text if is_space(space)}


def splitter(pattern: Pattern, phrases: dict[str, str]) -> pre_tokenizers.PreTokenizer:
    backend = json.loads(Tokenizer(models.BPE()).to_str())
    backend["pre_tokenizer"] = pattern.pre_tokenizer(phrases)
    return Tokenizer.from_str(json.dumps(backend)).pre_tokenizer


@pytest.mark.parametrize("regex", [GPT2, GPT2_DIGITS, LLAMA3, QWEN2])
def test_phrases_end_only_where_pre_tokens_end(regex):
    pattern = Pattern(regex, BYTES)
    plain = splitter(pattern, {})

    def starts(split: pre_tokenizers.PreTokenizer, text: str) -> list[int]:
        return [start for _, (start, _) in split.pre_tokenize_str(text)]

    phrases = {}
    for text in ODD_TEXTS:
        edges = [*starts(plain, text), len(text)]
        for first, last, end in zip(edges, edges[1:], edges[2:], strict=False):
            phrase = text[first:end]
            if not may_hold_digit(phrase) and starts(plain, phrase) == [0, last - first]:
                phrases[phrase] = text[last:end]
    extended = splitter(pattern, phrases)
    whole = [text for text in phrases if starts(extended, text) == [0]]
    assert len(whole) == len(phrases) > 1000

    @given(st.text(alphabet=ODD, max_size=30))
    @settings(max_examples=1000)
    def check(text):
        assert set(starts(extended, text)) <= set(starts(plain, text))

    check()


@pytest.mark.smollm2
@pytest.mark.parametrize("official", [False, True])
def test_smollm2_is_exact_with_thousands_of_ngrams(smollm2, official, tmp_path):
    longer = smollm2.tokenizer
    if official:  # the GGUF file does not say that digits are apart
        file = json.loads(longer.backend_tokenizer.to_str())
        digits = {"type": "Digits", "individual_digits": True}
        file["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [digits, {**BYTES, "use_regex": True}],
        }
        longer.save_pretrained(tmp_path / "base")
        (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(file))
        longer = AutoTokenizer.from_pretrained(tmp_path / "base")
    documents = list(topics.values())
    found = NGrams(49152, mined(TokenizerExtender(longer), documents + TEXTS, 3000))
    shorter = TokenizerExtender(longer).build(found)
    for text in documents[::4] + TEXTS:
        assert found.expand(ids(shorter, text)) == ids(longer, text)

    @given(mixtures(found, longer))
    @settings(max_examples=200)
    def check(text):
        assert_exact(found, longer, shorter, text)

    check()
    saved = [len(ids(shorter, text)) / len(ids(longer, text)) for text in documents[:20]]
    assert max(saved) < 0.9
