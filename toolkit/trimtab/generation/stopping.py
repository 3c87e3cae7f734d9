"""Text of tokens as they come, up to where it has to stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what bytes that are no UTF-8, or not yet, are decoded to


class TextStream:
    """Decodes tokens one after the other, and hands text out as soon as it is final.

    Text is held back while its last bytes may be the beginning of a character, or its end the
    beginning of a stop string. What is handed out, joined, is `text`.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Special tokens have no text.
    stops : sequence of str
        The text ends before the first of these that is complete; of several that the same token
        completes, before the one that begins first.

    Attributes
    ----------
    text : str
        What was handed out.
    stopped : bool
        Whether a stop string was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        # Tokens are decoded behind some that have text, the first `_fresh` of the window, because
        # decoders may treat the first of a text differently. Of the window's text `_known`
        # characters were seen before.
        self._window: list[int] = []
        self._fresh = 0
        self._known = 0
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next token and return the text that is final now, often empty."""
        self._window.append(token)
        decoded = self._decode(self._window)
        certain = decoded.rstrip(REPLACEMENT)
        self._held += certain[self._known :]
        self._known = max(self._known, len(certain))
        if certain == decoded and (rest := self._decode(self._window[self._fresh :])):
            self._window = self._window[self._fresh :]
            self._fresh = len(self._window)
            self._known = len(rest)
        return self._hand_out(len(self._held) - self._begun())

    def close(self) -> str:
        """Return the text that was held back, behind the last token."""
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
        """Return the length of the longest end of the text that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text, by the model's generation config and its tokenizer."""
    config = model.generation_config
    found = None if config is None else config.eos_token_id
    several = found if isinstance(found, list) else [found]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)
