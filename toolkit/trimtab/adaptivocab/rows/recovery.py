"""Input rows by split and recover: what a vocabulary itself says about pieces and their whole.

Many a token is spelled by two others, and its own row is known. A ridge regression learns to
recover that row from the halves' rows and from what the model's first layers make of the halves,
and is then asked for the rows of n-grams. After Tokens2Words, arXiv 2410.05864.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.adaptivocab.rows.layers import outputs_of
from trimtab.adaptivocab.rows.passages import with_start
from trimtab.adaptivocab.rows.ridge import Ridge
from trimtab.errors import MisfitError
from trimtab.models.adapter import adapter_for
from trimtab.progress import say, track

SPLITS = 8192  # most tokens split
FEWEST = 32  # with fewer there is nothing to learn from
HELD_OUT = 8  # every so many-th is kept to choose layer, penalty and scale
LAYERS = (1, 2, 4, 8, 16)  # behind which hidden states are tried
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # tried, over a feature's variance
BATCH = 256  # sequences of tokens read at a time


@dataclass(frozen=True)
class Features:
    """What token sequences, each read alone, say about the row that would stand for them.

    Parameters
    ----------
    ends : Tensor
        The embedding's rows of the first and of the last token, of shape [sequences, 2 width].
    states : list of Tensor
        The last token's hidden state behind each of the `LAYERS` there are, of shape
        [sequences, width].
    """

    ends: Tensor
    states: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: PreTrainedModel,
        sequences: Sequence[tuple[int, ...]],
        start: int | None,
        description: str,
    ) -> Features:
        """Read sequences behind `start`, under a progress bar with a description."""
        layers = adapter_for(model).decoder_layers(model)
        tried = [layers[number - 1] for number in LAYERS if number <= len(layers)]
        embedding: Any = model.get_input_embeddings()
        weight = embedding.weight
        ends = torch.tensor([(sequence[0], sequence[-1]) for sequence in sequences])
        states = [weight.new_empty(len(sequences), weight.shape[1]) for _ in tried]
        batches = list(_batches(sequences))
        for numbers in track(batches, description, len(batches)):
            ids = with_start(torch.tensor([sequences[number] for number in numbers]), start)
            outputs = outputs_of(tried, partial(model, ids.to(weight.device), use_cache=False))
            for state, output in zip(states, outputs, strict=True):
                state[numbers] = output[:, -1].to(state)
        return cls(weight[ends.to(weight.device)].flatten(1), states)

    def behind(self, layer: int) -> Tensor:
        """Return rows and states together, float64 of shape [sequences, 3 width]."""
        return torch.cat([self.ends, self.states[layer]], 1).double()


def _batches(sequences: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Yield the numbers of sequences of one length."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, sequence in enumerate(sequences):
        by_length[len(sequence)].append(number)
    for numbers in by_length.values():
        yield from (numbers[begin : begin + BATCH] for begin in range(0, len(numbers), BATCH))


@dataclass(frozen=True)
class Recovery:
    """Guesses the input row that would stand for a sequence of base tokens.

    Parameters
    ----------
    model : PreTrainedModel
    start : int or None
        Token put before a sequence when the model reads it.
    layer : int
        Which of the `LAYERS` the hidden state is taken behind, by its place among them.
    ridge : Ridge
        From `Features` to rows.
    scale : float
        A ridge regression shortens what it predicts; with this factor held-out rows have, on
        average, the length that they should.
    """

    model: PreTrainedModel
    start: int | None
    layer: int
    ridge: Ridge
    scale: float

    @classmethod
    def fit(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: int | None
    ) -> Recovery:
        """Learn from the tokens of a vocabulary that two others spell.

        The layer and the penalty are those of the least square error on held-out tokens, before
        the scale, which gives the rows their length back and is not fitted by error.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            The base tokenizer.

        Raises
        ------
        MisfitError
            If there is hardly a token of that kind.
        """
        splits = split_tokens(tokenizer)
        if len(splits) < FEWEST:
            raise MisfitError(
                f"rows=recovered learns from tokens that two others spell, and this vocabulary "
                f"has {len(splits)} of them, expected at least {FEWEST}: use rows=closed"
            )
        count = min(len(splits), SPLITS)
        tokens, halves = zip(*(splits[i * len(splits) // count] for i in range(count)), strict=True)
        known = Features.of(model, halves, start, "Reading split tokens")
        embedding: Any = model.get_input_embeddings()
        rows = embedding.weight[torch.tensor(tokens)].detach().double()
        held_out = torch.arange(count, device=rows.device) % HELD_OUT == 0
        tried = []
        for layer in range(len(known.states)):
            features = known.behind(layer)
            for penalty, ridge in Ridge.fits(features[~held_out], rows[~held_out], PENALTIES):
                guess = ridge(features[held_out])
                error = float((guess - rows[held_out]).square().mean())
                scale = float(rows[held_out].norm(dim=1).mean() / guess.norm(dim=1).mean())
                tried.append((error, layer, penalty, scale))
        error, layer, penalty, scale = min(tried)
        explained = 1 - error / float(rows[held_out].var(0, correction=0).mean())
        say(
            f"Split and recover: the regression explains {explained:.0%} of the variance of "
            f"{held_out.sum()} held-out tokens' rows, from {count} tokens and layer {LAYERS[layer]}"
        )
        ((_, ridge),) = Ridge.fits(known.behind(layer), rows, [penalty])
        return cls(model, start, layer, ridge, scale)

    def __call__(self, sequences: Sequence[tuple[int, ...]]) -> Tensor:
        """Return rows, float32 of shape [sequences, width], on the embedding's device."""
        features = Features.of(self.model, sequences, self.start, "Reading n-grams alone")
        return (self.scale * self.ridge(features.behind(self.layer))).float()


def split_tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, tuple[int, int]]]:
    """Return tokens that two others spell, by ascending id, each with the most even two."""
    vocabulary = tokenizer.get_vocab()
    for special in tokenizer.added_tokens_decoder.values():
        vocabulary.pop(str(special))
    decode = tokenizer.decode
    return sorted(
        (token, halves)
        for spelling, token in vocabulary.items()
        if (halves := _halves(spelling, vocabulary))
        # A byte's name, such as <0x0A>, is no spelling: the halves read as something else.
        and decode([token]) == decode(list(halves))
    )


def _halves(spelling: str, vocabulary: dict[str, int]) -> tuple[int, int] | None:
    middle = len(spelling) / 2
    for end in sorted(range(1, len(spelling)), key=lambda end: abs(end - middle)):
        first, second = spelling[:end], spelling[end:]
        if first in vocabulary and second in vocabulary:
            return vocabulary[first], vocabulary[second]
    return None
