"""Likelihood of a text summed over the ways to tokenize it, by importance sampling.

A model with n-grams can write a text in many ways, and the tokenizer's is only one of them. The
probability of the others is the text's too, so the bits of the tokenizer's own are an upper bound.
The sum is estimated as in Chirkova et al. (arXiv 2306.17757). Tokenizations are drawn token by
token from the model itself, restricted to the tokens with which the text can go on. The weight of
a tokenization is the product, over its tokens, of the probability that the model left to all that
could stand there. The mean weight is unbiased; its logarithm is too small on average, so the bits
are still an upper bound, but a closer one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from trimtab.models.adapter import module_device, positions_of

Choices = list[list[tuple[int, int]]]  # at each position, the tokens that fit and their lengths


@torch.inference_mode()
def marginal_likelihood_nats(
    model: PreTrainedModel,
    context: Sequence[int],
    text: Sequence[int],
    ngram_tokens: Mapping[int, tuple[int, ...]],
    samples: int,
    generator: torch.Generator,
) -> float:
    """Return the negative logarithm of a text's estimated probability after a context, in nats.

    Parameters
    ----------
    context : sequence of int
        Tokens that are read, at least one.
    text : sequence of int
        The text in base tokens, at least one.
    ngram_tokens : mapping of int to tuple of int
        Tokens that stand for several base tokens, and which.
    samples : int
        Tokenizations drawn.
    """
    choices = tokenizations(text, ngram_tokens)
    device = module_device(model.get_input_embeddings())
    cache = DynamicCache(config=model.config)
    prompt = torch.tensor([context], device=device)
    places_of_prompt = positions_of(model, prompt)
    output = model(input_ids=prompt, past_key_values=cache, logits_to_keep=1, **places_of_prompt)
    cache.batch_repeat_interleave(samples)
    log_probs = output.logits[:, -1].float().log_softmax(-1).expand(samples, -1)
    places, weights = [0] * samples, torch.zeros(samples, dtype=torch.float64)
    while True:
        chosen = [text[-1]] * samples  # after the end of the text anything may be read
        for row, place in enumerate(places):
            if place == len(text):
                continue
            tokens, lengths = zip(*choices[place], strict=True)
            allowed = log_probs[row, list(tokens)].double().cpu()
            drawn = int(torch.multinomial(allowed.softmax(0), 1, generator=generator))
            weights[row] += allowed.logsumexp(0)
            chosen[row], places[row] = tokens[drawn], place + lengths[drawn]
        if min(places) == len(text):
            return math.log(samples) - float(weights.logsumexp(0))
        step = torch.tensor(chosen, device=device)[:, None]
        position = positions_of(model, step, cache.get_seq_length())
        output = model(input_ids=step, past_key_values=cache, **position)
        log_probs = output.logits[:, -1].float().log_softmax(-1)


def tokenizations(text: Sequence[int], ngram_tokens: Mapping[int, tuple[int, ...]]) -> Choices:
    """Return for each base token the tokens that may begin there, and how many each stands for."""
    ngrams = {expanded: token for token, expanded in ngram_tokens.items()}
    longest = max(map(len, ngrams), default=1)
    choices: Choices = []
    for place, token in enumerate(text):
        choices.append([(token, 1)])
        for length in range(2, min(longest, len(text) - place) + 1):
            found = ngrams.get(tuple(text[place : place + length]))
            if found is not None:
                choices[-1].append((found, length))
    return choices
