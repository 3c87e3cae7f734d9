"""Input rows by split and recover: learned from tokens that two other tokens spell.

Such a token's own row is known. A ridge regression learns to recover it from the rows of its two
halves and from what the model's first layers make of them, and then predicts the rows of n-grams.
After Tokens2Words, arXiv 2410.05864.
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
HELD_OUT = 8  # one token in so many is held out to choose layer, penalty and scale
LAYERS = (1, 2, 4, 8, 16)  # whose outputs are tried
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # tried, over a feature's variance
BATCH = 256  # sequences of tokens run at a time


@dataclass(frozen=True)
class SequenceFeatures:
    """What predicts the row that would stand for a sequence of tokens, each run by itself.

    Parameters
    ----------
    ends : Tensor
        The embedding's rows of the first and of the last token, of shape [sequences, 2 width].
    states : list of Tensor
        The last token's hidden state after each of the `LAYERS` that the model has, of shape
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
    ) -> SequenceFeatures:
        """Run the first layers over sequences after `start`, with a progress bar."""
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

    def after(self, layer: int) -> Tensor:
        """Return rows and the states after a layer, float64 of shape [sequences, 3 width].

        Parameters
        ----------
        layer : int
            By its place among the `LAYERS`.
        """
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
    """Predicts the input row that would stand for a sequence of base tokens.

    Parameters
    ----------
    model : PreTrainedModel
    start : int or None
        Token put before a sequence when the model runs over it.
    layer : int
        The layer whose output is used, by its place among the `LAYERS`.
    ridge : Ridge
        From `SequenceFeatures` to rows.
    scale : float
        A ridge regression shortens what it predicts; this factor gives held-out rows, on
        average, the length that they should have.
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

        The layer and the penalty are those with the least square error on held-out tokens. The
        scale is applied after that choice.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            The base tokenizer.

        Raises
        ------
        MisfitError
            If fewer than `FEWEST` tokens are of that kind.
        """
        splits = split_tokens(tokenizer)
        if len(splits) < FEWEST:
            raise MisfitError(
                f"rows=recovered learns from tokens that two others spell, and this vocabulary "
                f"has {len(splits)} of them, expected at least {FEWEST}: use rows=fitted"
            )
        count = min(len(splits), SPLITS)
        tokens, halves = zip(*(splits[i * len(splits) // count] for i in range(count)), strict=True)
        known = SequenceFeatures.of(model, halves, start, "Hidden states of split tokens")
        embedding: Any = model.get_input_embeddings()
        rows = embedding.weight[torch.tensor(tokens)].detach().double()
        held_out = torch.arange(count, device=rows.device) % HELD_OUT == 0
        tried = []
        for layer in range(len(known.states)):
            features = known.after(layer)
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
        ((_, ridge),) = Ridge.fits(known.after(layer), rows, [penalty])
        return cls(model, start, layer, ridge, scale)

    def __call__(self, sequences: Sequence[tuple[int, ...]]) -> Tensor:
        """Return rows, float32 of shape [sequences, width], on the embedding's device."""
        features = SequenceFeatures.of(
            self.model, sequences, self.start, "Hidden states of n-grams"
        )
        return (self.scale * self.ridge(features.after(self.layer))).float()


def split_tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, tuple[int, int]]]:
    """Return the tokens that two others spell, by ascending id, each with its most even halves."""
    vocabulary = tokenizer.get_vocab()
    for special in tokenizer.added_tokens_decoder.values():
        vocabulary.pop(str(special))
    decode = tokenizer.decode
    return sorted(
        (token, halves)
        for spelling, token in vocabulary.items()
        if (halves := _halves(spelling, vocabulary))
        # A byte's name, such as <0x0A>, is no spelling: its halves decode to something else.
        and decode([token]) == decode(list(halves))
    )


def _halves(spelling: str, vocabulary: dict[str, int]) -> tuple[int, int] | None:
    middle = len(spelling) / 2
    for end in sorted(range(1, len(spelling)), key=lambda end: abs(end - middle)):
        first, second = spelling[:end], spelling[end:]
        if first in vocabulary and second in vocabulary:
            return vocabulary[first], vocabulary[second]
    return None
