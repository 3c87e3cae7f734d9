"""Regular expressions that divide text into pre-tokens, and the same with whole n-grams.

A pattern is matched again and again, each time where the last match ended, and none of those here
has a look-behind. So n-grams of whole pre-tokens may be put before the pattern's own alternatives
on one condition: the text that follows must leave an n-gram's last pre-token as it is. A
*look-ahead* after each n-gram ensures it. It may reject more than it has to, never less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from trimtab.adaptivocab.tokenizer.characters import is_space

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of ByteLevel
# The pre-tokenizer Digits splits at numbers of Unicode 17 that \p{N} lacks; they are written out.
DIGIT = r"\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}"
GPT2_DIGITS = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+|[{DIGIT}]| ?[^\s\p{{L}}{DIGIT}]+"
    rf"|\s+(?![^\s{DIGIT}])|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _LLAMA3.replace("%s", "{1,3}")
QWEN2 = _LLAMA3.replace("%s", "")

BRANCHES = 4  # alternatives in a row; more are first divided by what they begin with
_ESCAPED = str.maketrans({mark: "\\" + mark for mark in r"\.[]{}()*+?^$|-&"})


class InexpressibleError(Exception):
    """Why a tokenizer's file cannot express n-grams."""


@dataclass(frozen=True)
class Pattern:
    """A pattern that can be extended.

    Parameters
    ----------
    regex : str
        In Oniguruma's syntax.
    byte_level : dict
        The ``ByteLevel`` that follows it, as in ``tokenizer.json``.
    """

    regex: str
    byte_level: dict[str, Any]

    def lookahead(self, last: str) -> str:
        """Return what must hold after an n-gram with this last pre-token, which is no number."""
        if last[-1].isalpha():
            return r"(?!\p{L})"
        if self.regex in (LLAMA3, QWEN2):
            return _llama3_lookahead(last)
        if not is_space(last[-1]):
            return r"(?![^\s\p{N}])" if last == "'" else r"(?![^\s\p{L}\p{N}])"
        # A run of spaces leaves its last one to what follows, unless a number or nothing follows.
        digits = self.regex == GPT2_DIGITS
        seen, end = (rf"[^\s{DIGIT}]", rf"[{DIGIT}]|\z") if digits else (r"\S", r"\z")
        alone = len(last) == 1 and last != " "
        return rf"(?=\s?{seen}|{end})" if alone else rf"(?=\s{seen}|{end})"

    def pre_tokenizer(self, phrases: Mapping[str, str]) -> dict[str, Any]:
        """Return the pre-tokenizer that keeps `phrases` whole, as in ``tokenizer.json``.

        Parameters
        ----------
        phrases : mapping from str to str
            The text of every n-gram, and its last pre-token.
        """
        conditions = {phrase: self.lookahead(last) for phrase, last in phrases.items()}
        regex = f"{alternation(conditions)}|{self.regex}" if conditions else self.regex
        split = {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        }
        return {"type": "Sequence", "pretokenizers": [split, {**self.byte_level}]}


def find_pattern(pre_tokenizer: dict[str, Any] | None, normalizer: Any) -> Pattern | None:
    """Return the pattern of a pre-tokenizer as in ``tokenizer.json``; None if it never splits.

    Raises
    ------
    InexpressibleError
        If it is not one of those known here.
    """
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    byte_level = {**steps[-1], "use_regex": False} if steps else {}
    if kinds and kinds[-1] == "ByteLevel":
        if steps[-1]["add_prefix_space"]:
            raise InexpressibleError("its pre-tokenizer puts a space before every text")
        own = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"]:
            return Pattern(GPT2, byte_level) if own else None
        if kinds == ["Digits", "ByteLevel"] and own and steps[0]["individual_digits"]:
            return Pattern(GPT2_DIGITS, byte_level)
        if kinds == ["Split", "ByteLevel"] and not own:
            regex = steps[0]["pattern"].get("Regex")
            how = steps[0]["behavior"], steps[0]["invert"]
            if regex in (GPT2, LLAMA3, QWEN2) and how in (("Isolated", False), ("Removed", True)):
                return Pattern(regex, byte_level)
    elif (
        not steps
        or (kinds == ["Metaspace"] and not steps[0].get("split", True))
        or (kinds == ["Split"] and _is_idle(steps[0], normalizer))
    ):
        return None
    raise InexpressibleError(f"its pre-tokenizer ({', '.join(kinds)}) is not one that is known")


def _is_idle(split: dict[str, Any], normalizer: Any) -> bool:
    """Return whether a split is at spaces where the normalizer leaves none."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    replaced = steps and steps[-1]["type"] == "Replace" and steps[-1]["pattern"]
    return bool(split["pattern"] == {"String": " "} == replaced and " " not in steps[-1]["content"])


def _llama3_lookahead(last: str) -> str:
    if not is_space(last[-1]):
        # One such character joins letters after it; any number of them join line ends.
        other = r"[^\s\p{N}]" if len(last) == 1 else r"[^\s\p{L}\p{N}]"
        return rf"(?!{other}|[\r\n])"
    if not all(map(is_space, last)):  # marks, then line ends
        return r"(?![\r\n])"
    if last[-1] in "\r\n":
        return r"(?!\s*[\r\n])"
    # As for GPT-2, but one space joins letters too, and line ends take all spaces before them.
    single = {" ": r"|\p{N}"}.get(last, r"|[^\s\p{L}]") if len(last) == 1 else ""
    return rf"(?=[^\S\r\n]\S{single}|\z)"


def alternation(conditions: Mapping[str, str]) -> str:
    """Return a pattern of any of the texts, each before its look-ahead, the longest first.

    It is a prefix tree, and so rejects any other text quickly.

    Parameters
    ----------
    conditions : mapping from str to str
        The look-ahead of every text.
    """
    branches: dict[str, dict[str, str]] = defaultdict(dict)
    for text, condition in conditions.items():
        if text:
            branches[text[0]][text] = condition
    alternatives: list[tuple[str, str]] = []
    for first, texts in sorted(branches.items()):
        ends = zip(min(texts), max(texts), strict=False)
        shared = "".join(low for low, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
        rest = {text[len(shared) :]: condition for text, condition in texts.items()}
        alternatives.append((first, shared.translate(_ESCAPED) + alternation(rest)))
    parts = _divided(alternatives)
    if "" in conditions:
        parts.append(conditions[""])
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _divided(alternatives: list[tuple[str, str]]) -> list[str]:
    """Return alternatives, given with what they begin with, grouped so that few are tried."""
    if len(alternatives) <= BRANCHES:
        return [pattern for _, pattern in alternatives]
    half = len(alternatives) // 2
    firsts = "".join(first for first, _ in alternatives[:half]).translate(_ESCAPED)
    left, right = ("|".join(_divided(part)) for part in (alternatives[:half], alternatives[half:]))
    return [f"(?=[{firsts}])(?:{left})", f"(?:{right})"]
