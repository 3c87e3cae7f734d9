"""The text of tokens as they arrive, and where it has to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import MisfitError, TrimtabError

REPLACEMENT = "\ufffd"  # what bytes are decoded to that are not, or not yet, valid UTF-8


class Detokenizer:
    """Decodes tokens one after the other, and hands out text as soon as it is final.

    Text is held back while its last bytes may begin a character, or its end may begin a stop
    string. The pieces handed out, joined, are `text`.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Its special tokens have no text.
    stops : sequence of str
        The text ends before the first stop string to be completed; where one token completes
        several, before the one that begins first. One may be a special token.

    Attributes
    ----------
    text : str
        What has been handed out.
    stopped : bool
        Whether a stop string was found.

    Raises
    ------
    TrimtabError
        If a stop string holds a special token, which has no text, and something else.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._special_stops = _special_stops(tokenizer, stops)
        # Decoders may treat the first token of a text differently. So new tokens are decoded
        # together with earlier ones that have text: the first `_seen` tokens of the window. Of the
        # window's text, the first `_known` characters are accounted for.
        self._window: list[int] = []
        self._seen = 0
        self._known = 0
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next token, and return the text that it makes final, often empty."""
        if token in self._special_stops:
            final = self.close()
            self.stopped = True
            return final
        self._window.append(token)
        decoded = self._decode(self._window)
        certain = decoded.rstrip(REPLACEMENT)
        self._held += certain[self._known :]
        self._known = max(self._known, len(certain))
        if certain == decoded and (rest := self._decode(self._window[self._seen :])):
            self._window = self._window[self._seen :]
            self._seen = len(self._window)
            self._known = len(rest)
        return self._hand_out(len(self._held) - self._begun())

    def close(self) -> str:
        """End the text, and return what was held back."""
        if not self.stopped:
            self._held += self._decode(self._window)[self._known :]
            self._window = []
            self._known = 0
        return self._hand_out(len(self._held))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _hand_out(self, end: int) -> str:
        if self.stopped:
            return ""
        starts = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if starts:
            self.stopped = True
            end = min(starts)
        final, self._held = self._held[:end], self._held[end:]
        self.text += final
        return final

    def _begun(self) -> int:
        """Return how many of the last characters may begin a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


def _special_stops(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> frozenset[int]:
    """Return the special tokens among the stop strings."""
    if not stops:
        return frozenset()
    special = {str(one): id for id, one in tokenizer.added_tokens_decoder.items() if one.special}
    for stop in stops:
        for token in special:
            if token in stop and stop not in special:
                raise TrimtabError(
                    f"stop={stop!r}: holds the special token {token}, which has no text: give "
                    "that alone"
                )
    return frozenset(special[stop] for stop in stops if stop in special)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text: those of the model's generation config and tokenizer."""
    return frozenset(_tokens("eos", model.generation_config, tokenizer))


def require_going_on(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that cannot go on with a text: all tokens with a text of their own end it.

    Raises
    ------
    MisfitError
    """
    ends = stop_tokens(model, tokenizer)
    if ends.issuperset(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)):
        raise MisfitError(
            f"the model's generation config lists {len(ends)} tokens as eos_token_id, all of the "
            "tokenizer's, so that every text ends at once: list only those that end a text"
        )


def special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that begin, end and pad a text, for the model or for the tokenizer."""
    sources = model.generation_config, model.config, tokenizer
    return frozenset(token for role in ("bos", "eos", "pad") for token in _tokens(role, *sources))


def _tokens(role: str, *sources: Any) -> Iterator[int]:
    for source in sources:
        found = getattr(source, f"{role}_token_id", None)
        tokens = found if isinstance(found, list) else [] if found is None else [found]
        for token in tokens:
            if isinstance(token, bool) or not isinstance(token, int):
                raise TrimtabError(
                    f"{role}_token_id={found!r} in the {type(source).__name__}: expected token ids"
                )
            if token >= 0:  # a negative one stands for none
                yield token
