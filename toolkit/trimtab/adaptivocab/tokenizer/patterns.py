"""Regular expressions that divide text into pre-tokens, and the same with n-grams of pre-tokens.

A pattern is matched again and again, each time where the last match ended, and none of those here
looks behind. So an n-gram of whole pre-tokens may be put before the pattern's own alternatives
where one thing is sure: that the text after it leaves its last pre-token as it is. The n-gram's
*guard*, a look-ahead, says so. It may refuse more than it must, never less.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from trimtab.adaptivocab.tokenizer.alternation import alternation

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of ByteLevel
# Digits takes numbers of Unicode 17 that \p{N} does not know yet; they are written out.
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

BROKEN = "[\udc80-\udcff]+"


class InexpressibleError(Exception):
    """Why a tokenizer's file cannot hold n-grams."""


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

    def guard(self, word: str) -> str:
        """Return what must hold after an n-gram whose last pre-token is `word`, not a number."""
        if word[-1].isalpha():
            return r"(?!\p{L})"
        if self.regex in (LLAMA3, QWEN2):
            return _llama3_guard(word)
        if not is_space(word[-1]):
            return r"(?![^\s\p{N}])" if word == "'" else r"(?![^\s\p{L}\p{N}])"
        # A run of spaces leaves its last one to what follows, unless a number or nothing does.
        digits = self.regex == GPT2_DIGITS
        seen, end = (rf"[^\s{DIGIT}]", rf"[{DIGIT}]|\z") if digits else (r"\S", r"\z")
        alone = len(word) == 1 and word != " "
        return rf"(?=\s?{seen}|{end})" if alone else rf"(?=\s{seen}|{end})"

    def pre_tokenizer(self, phrases: Mapping[str, str]) -> dict[str, Any]:
        """Return the pre-tokenizer that keeps `phrases` whole, as in ``tokenizer.json``.

        Parameters
        ----------
        phrases : mapping from str to str
            The text of every n-gram, and the last pre-token of each.
        """
        guarded = {phrase: self.guard(last) for phrase, last in phrases.items()}
        regex = f"{alternation(guarded)}|{self.regex}" if guarded else self.regex
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
        If it is none of those known here.
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


def is_space(character: str) -> bool:
    r"""Return whether a character is one of ``\s``."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


def may_hold_digit(text: str) -> bool:
    """Return whether a text holds a character that is, or may be part of, a number.

    Parameters
    ----------
    text : str
        Bytes that are no UTF-8, as at its ends, are lone surrogates: see ``surrogateescape``.
    """
    if any(map(_is_number, text)):
        return True
    fragments = [run.encode("utf-8", "surrogateescape") for run in re.findall(BROKEN, text)]
    return any(
        part in _number_parts()
        for run in fragments
        for part in re.findall(rb"^[^\xc0-\xff]+|[\xc0-\xff][^\xc0-\xff]*", run)
    )


def _is_number(character: str) -> bool:
    """Return whether a character is a number, or a later Unicode's than Python's and may be one."""
    return unicodedata.category(character) in ("Nd", "Nl", "No", "Cn")


@cache
def _number_parts() -> frozenset[bytes]:
    """Return every part of the UTF-8 of a number."""
    known = (chr(code) for code in range(sys.maxunicode + 1))
    numbers = [one.encode() for one in known if unicodedata.category(one)[0] == "N"]
    return frozenset(
        one[start:end]
        for one in numbers
        for start in range(len(one))
        for end in range(start + 1, len(one) + 1)
    )


def _is_idle(split: dict[str, Any], normalizer: Any) -> bool:
    """Return whether a split is at spaces where the normalizer leaves none."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    replaced = steps and steps[-1]["type"] == "Replace" and steps[-1]["pattern"]
    return bool(split["pattern"] == {"String": " "} == replaced and " " not in steps[-1]["content"])


def _llama3_guard(word: str) -> str:
    if not is_space(word[-1]):
        # One such character goes with the letters behind it, any number with line ends.
        other = r"[^\s\p{N}]" if len(word) == 1 else r"[^\s\p{L}\p{N}]"
        return rf"(?!{other}|[\r\n])"
    if not all(map(is_space, word)):  # marks and the line ends behind them
        return r"(?![\r\n])"
    if word[-1] in "\r\n":
        return r"(?!\s*[\r\n])"
    # As for GPT-2, but one space goes with letters too, and line ends take all before them.
    single = {" ": r"|\p{N}"}.get(word, r"|[^\s\p{L}]") if len(word) == 1 else ""
    return rf"(?=[^\S\r\n]\S{single}|\z)"
