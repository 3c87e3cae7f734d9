"""Tiny tokenizers of every kind that n-grams are added to, and n-grams for any of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.tokenizer.extender import TokenizerExtender
from trimtab.adaptivocab.tokenizer.patterns import LLAMA3, QWEN2

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
LINES = (Path(__file__).parent / "texts.txt").read_text("utf-8").split("\n")
TEXTS = [json.loads(line) for line in LINES if line]  # one JSON string each
DOCUMENTS = sorted(topics.values())[:16]
CORPUS = DOCUMENTS + TEXTS
ODD = " \n\t\ra's.7(\u00a0\u0301é\U0001f469\u200d\U00011de0"  # where patterns differ
_DRAW = random.Random(0)
ODD_TEXTS = ["".join(_DRAW.choices(ODD, k=40)) for _ in range(600)]


def _trained(
    model: models.Model,
    trainer: trainers.Trainer,
    pre_tokenizer: pre.PreTokenizer,
    decoder: decoders.Decoder,
) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator(DOCUMENTS + ODD_TEXTS, trainer)
    return tokenizer


def _byte_level(
    pre_tokenizer: pre.PreTokenizer, specials: Iterable[str] = (), size: int = 600
) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=list(specials),
        show_progress=False,
    )
    return _trained(models.BPE(), trainer, pre_tokenizer, decoders.ByteLevel())


def _bytes(*, regex: bool, prefix: bool = False) -> pre.PreTokenizer:
    return pre.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def _split(pattern: str) -> pre.PreTokenizer:
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), _bytes(regex=False)])


def _gpt2() -> Tokenizer:
    return _byte_level(_bytes(regex=True), SPECIALS.values())


def _digits() -> Tokenizer:
    steps = [pre.Digits(individual_digits=True), _bytes(regex=True)]
    return _byte_level(pre.Sequence(steps), SPECIALS.values())


def _llama3() -> Tokenizer:
    """Return one with special tokens after the vocabulary, one of them put before texts."""
    tokenizer = _byte_level(_split(LLAMA3))
    tokenizer.add_special_tokens(list(SPECIALS.values()))
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<s> $A", pair="<s> $A $B", special_tokens=[bos]),
        ]
    )
    return tokenizer


def _qwen2() -> Tokenizer:
    tokenizer = _byte_level(_split(QWEN2))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(list(SPECIALS.values()))
    return tokenizer


def _unsplit() -> Tokenizer:
    return _byte_level(_bytes(regex=False), SPECIALS.values(), size=300)


def _sentencepiece() -> Tokenizer:
    """Return one like Llama 2's: no pre-tokenizer, and bytes for unknown characters."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    replaced = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", *SPECIALS.values()],
        limit_alphabet=100,
        show_progress=False,
    )
    trained = _trained(
        models.BPE(unk_token="<unk>"),
        trainer,
        pre.Split(" ", "merged_with_previous"),
        decoders.Fuse(),
    )
    vocab, merges = _vocab_and_merges(trained)
    for token in fallback:
        vocab[token] = len(vocab)
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", *SPECIALS.values()])
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[bos])
    return tokenizer


def _vocab_and_merges(trained: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(trained.to_str())["model"]

    def marked(token: str) -> str:
        return token.replace(" ", "▁")

    vocab = {marked(token): index for token, index in model["vocab"].items()}
    return vocab, [(marked(left), marked(right)) for left, right in model["merges"]]


def _prefixed() -> Tokenizer:
    return _byte_level(_bytes(regex=True, prefix=True), SPECIALS.values())


def _unigram() -> Tokenizer:
    """Return one that puts a special token before and after every text."""
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<unk>", *SPECIALS.values()],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer = _trained(models.Unigram(), trainer, pre.Metaspace(), decoders.Metaspace())
    around = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=around)
    return tokenizer


def _wordpiece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]", *SPECIALS.values()], show_progress=False
    )
    model = models.WordPiece(unk_token="[UNK]")
    decoder = decoders.WordPiece(cleanup=False)
    return _trained(model, trainer, pre.BertPreTokenizer(), decoder)


ALIGNED: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": _gpt2,
    "digits": _digits,
    "llama3": _llama3,
    "qwen2": _qwen2,
}
UNALIGNED = {"unsplit": _unsplit, "sentencepiece": _sentencepiece}
WRAPPED = {"prefixed": _prefixed, "unigram": _unigram, "wordpiece": _wordpiece}
EVERY = {**ALIGNED, **UNALIGNED, **WRAPPED}


@cache
def base(kind: str) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=EVERY[kind](), **SPECIALS)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@cache
def extender(kind: str) -> TokenizerExtender:
    return TokenizerExtender(base(kind))


@cache
def ngrams(kind: str) -> NGrams:
    found = mined(extender(kind), CORPUS, 400)
    return NGrams(len(base(kind)) + 7, found)


@cache
def extended(kind: str) -> PreTrainedTokenizerBase:
    return extender(kind).build(ngrams(kind))


@cache
def odd_ngrams(kind: str) -> NGrams:
    """Return n-grams of the characters at which it is hard to tell where a pre-token ends."""
    return NGrams(len(base(kind)), mined(extender(kind), ODD_TEXTS, 500, longest=3))


@cache
def odd_extended(kind: str) -> PreTrainedTokenizerBase:
    return extender(kind).build(odd_ngrams(kind))


def mined(
    extender: TokenizerExtender, texts: Iterable[str], count: int, longest: int = 4
) -> tuple[tuple[int, ...], ...]:
    """Return the `count` most frequent n-grams, and what theirs need, all of different texts."""
    frequency: Counter[tuple[tuple[int, ...], bool]] = Counter()
    for text in texts:
        ids, numbers = extender.segment(text)
        words: list[list[int]] = []
        for position, number in enumerate(numbers):
            if position and numbers[position - 1] == number:
                words[-1].append(ids[position])
            else:
                words.append([ids[position]])
        for word in words:
            frequency.update((run, False) for run in _runs([[token] for token in word], longest))
        frequency.update((run, True) for run in _runs(words, longest))
    kept: dict[tuple[int, ...], str] = {}
    strings_seen: set[str] = set()
    for (ngram, crosses), _ in sorted(
        frequency.items(), key=lambda item: (-item[1], len(item[0][0]), item[0])
    ):
        if not extender.admissible(ngram, crosses):
            continue
        closed = extender.aligned and crosses
        string = "".join(extender.tokenizer.convert_ids_to_tokens(list(ngram)))
        if string in strings_seen or not (closed or len(ngram) == 2 or ngram[:-1] in kept):
            continue
        strings_seen.add(string)
        kept[ngram] = string
        if len(kept) == count:
            break
    return tuple(kept)


def _runs(words: list[list[int]], longest: int) -> Iterable[tuple[int, ...]]:
    for length in range(2, longest + 1):
        for start in range(len(words) - length + 1):
            yield tuple(token for word in words[start : start + length] for token in word)
