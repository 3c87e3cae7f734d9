"""How the next token is chosen: greedily, or drawn from a distribution that may be truncated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trimtab.errors import TrimtabError, as_given
from trimtab.models.predictions import NOT_FINITE

LARGEST = sys.float_info.max
NOTHING = -1  # in place of a token, where the model predicts what is not finite
LEAST_TEMPERATURE = 1e-6  # logits over a smaller one may be no finite float32


@dataclass(frozen=True)
class Sampling:
    """What the next token is drawn from.

    Parameters
    ----------
    temperature : float
        Divides the logits, at least 1e-6; 0 takes the most probable token (greedy).
    top_k : int, optional
        Draw only from this many of the most probable tokens.
    top_p : float, optional
        Draw only from the most probable tokens that together reach this probability, at most 1.
    seed : int
        At least 0. Every prompt has its own generator, seeded with this and the prompt's index, so
        that its tokens do not depend on the other prompts.

    Raises
    ------
    TrimtabError
        If a value is out of range, or `top_k` or `top_p` is given although nothing is drawn.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, type, Callable[[Any], bool], str], ...] = (
            (
                "temperature",
                Real,
                lambda one: one == 0 or LEAST_TEMPERATURE <= float(one) <= LARGEST,
                f"a number from {LEAST_TEMPERATURE:g} on, or 0, which is greedy",
            ),
            ("top_k", Integral, lambda one: one >= 1, "a whole number of at least 1, or None"),
            ("top_p", Real, lambda one: 0 < one <= 1, "a number above 0 and at most 1, or None"),
            ("seed", Integral, lambda one: 0 <= one < 2**63, "a whole number from 0 to 2**63 - 1"),
        )
        for name, kind, valid, expected in checks:
            value = getattr(self, name)
            if value is None and name.startswith("top"):
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not valid(value):
                raise TrimtabError(f"{name}={as_given(value)}: expected {expected}")
        for name, plain in (
            ("temperature", float),
            ("top_k", int),
            ("top_p", float),
            ("seed", int),
        ):
            if (value := getattr(self, name)) is not None:  # the warpers take no number of NumPy's
                object.__setattr__(self, name, plain(value))
        if self.greedy and (self.top_k, self.top_p) != (None, None):
            raise TrimtabError(
                f"temperature=0 is greedy, which top_k={self.top_k} and top_p={self.top_p} do not "
                "change: leave them None, or set a temperature"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def warpers(self) -> LogitsProcessorList:
        """Return transformers' own warpers, in the order in which its `generate` applies them."""
        if self.greedy:
            return LogitsProcessorList()
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


def sampling_of(given: Sampling | None) -> Sampling:
    """Return what was given, greedy decoding where nothing was.

    Raises
    ------
    TrimtabError
        If it is something else.
    """
    if given is not None and not isinstance(given, Sampling):
        raise TrimtabError(
            f"sampling={given!r:.60}: expected a Sampling, such as Sampling(temperature=1.0)"
        )
    return given or Sampling()


def seed_of(sampling: Sampling, index: int) -> int:
    """Return what the draws of a prompt begin with: no other seed or prompt has the same."""
    (seed,) = np.random.SeedSequence((sampling.seed, index)).generate_state(1, np.uint64)
    return int(seed)


class Sampler:
    """Chooses the tokens of one sequence, one after the other.

    Parameters
    ----------
    sampling : Sampling
    index : int
        Index of the prompt.
    device : torch.device
        Device of the logits.
    processors : LogitsProcessorList, optional
        Applied before the warpers.

    Attributes
    ----------
    plain : bool
        Whether the token with the largest logit is chosen, whatever came before.
    """

    def __init__(
        self,
        sampling: Sampling,
        index: int,
        device: torch.device,
        processors: LogitsProcessorList | None = None,
    ) -> None:
        self._processors: Any = processors
        self._warpers: Any = sampling.warpers()
        self._generator = None
        if not sampling.greedy:
            self._generator = torch.Generator(device).manual_seed(seed_of(sampling, index))
        self.plain = processors is None and self._generator is None

    def __call__(self, ids: Sequence[int], logits: Tensor) -> int:
        """Return the next token; see `draw`.

        Raises
        ------
        TrimtabError
            If what the model predicts is not finite.
        """
        return token_of(int(self.draw(ids, logits)))

    def draw(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        """Return the next token where the logits are, without waiting for it.

        Parameters
        ----------
        ids : sequence of int
            The prompt and the tokens after it.
        logits : Tensor
            Floating point, of shape [1, vocabulary]; processed in float32.

        Returns
        -------
        Tensor
            int64 of shape [1], to be read with `token_of`.
        """
        # A copy, as in transformers, because processors may write to it.
        scores = logits.to(torch.float32, copy=True)
        if self._processors is not None:
            scores = self._processors(torch.tensor([ids], device=scores.device), scores)
        if self._generator is None:
            return scores.argmax(-1)
        probabilities = self._warpers(None, scores).softmax(-1)
        # As torch.multinomial draws one, which waits for the device to check what it is given.
        draws = torch.empty_like(probabilities).exponential_(generator=self._generator)
        drawn = (probabilities / draws).argmax(-1)
        return torch.where(probabilities.isfinite().all(-1), drawn, NOTHING)


def token_of(drawn: int) -> int:
    """Return the token that `Sampler.draw` has drawn, or raise `TrimtabError` if there is none."""
    if drawn == NOTHING:
        raise TrimtabError(f"{NOT_FINITE}: nothing can be drawn from it")
    return drawn
