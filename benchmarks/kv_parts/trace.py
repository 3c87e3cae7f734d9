"""The requests that `kv.py` plays: the tokens of each prompt and of each output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trimtab.errors import TrimtabError


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival.

    Parameters
    ----------
    prompts, outputs : tuple of int
        Tokens of each request.
    """

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def load(cls, path: Path, max_len: int) -> Self:
        """Load a trace: ``{"sequences": [{"prompt_tokens": 5, "output_tokens": 3}, …]}``.

        Raises
        ------
        TrimtabError
            If the file is not such JSON, or a sequence is longer than `max_len`.
        """
        try:
            sequences = json.loads(path.read_text("utf-8"))["sequences"]
            pairs = [(entry["prompt_tokens"], entry["output_tokens"]) for entry in sequences]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrimtabError(
                f"--trace {path}: {type(error).__name__}: {error}; expected JSON with a list "
                '"sequences" of {"prompt_tokens": …, "output_tokens": …} in order of arrival'
            ) from error
        if not pairs:
            raise TrimtabError(f'--trace {path}: "sequences" is empty; expected at least one')
        for index, pair in enumerate(pairs):
            if not all(type(tokens) is int and tokens > 0 for tokens in pair):
                raise TrimtabError(
                    f"--trace {path}: sequence {index} has prompt_tokens={pair[0]!r} and "
                    f"output_tokens={pair[1]!r}; expected integers above 0"
                )
            if sum(pair) > max_len:
                raise TrimtabError(
                    f"--trace {path}: sequence {index} has {sum(pair)} tokens; expected at most "
                    f"--max-len {max_len}"
                )
        prompts, outputs = zip(*pairs, strict=True)
        return cls(prompts, outputs)

    @property
    def lengths(self) -> list[int]:
        """Final length of each request, in tokens."""
        return [sum(pair) for pair in zip(self.prompts, self.outputs, strict=True)]

    def steps(self) -> Iterator[dict[int, int]]:
        """Yield the lengths to which requests grow, step by step, until all are complete.

        One request arrives at each step, with its whole prompt; the earlier ones get one token.
        """
        whole = self.lengths
        lengths: dict[int, int] = {}
        while [*lengths.values()] != whole:
            grown = {i: length + 1 for i, length in lengths.items() if length < whole[i]}
            if len(lengths) < len(whole):
                grown[len(lengths)] = self.prompts[len(lengths)]
            lengths |= grown
            yield grown
