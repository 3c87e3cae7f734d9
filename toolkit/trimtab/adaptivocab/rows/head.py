"""Rows of the head for n-grams, by logistic regression on the final hidden states.

An n-gram's logit is its first token's plus the log of the probability that the other tokens
follow. That log is modelled as affine in the hidden state h: an offset, a share of the logits of
the later tokens, and a ridge correction. The head has no offsets, but along the direction u with
u · h as close to 1 as one direction can be, a row acts as one. Rows of first tokens change too,
because their probability is divided between the n-grams and the token by itself. The loss is the
cross-entropy to `DistillationTargets` over the whole vocabulary, convex in the rows while the
hidden states are given. The share is chosen among a few, the offsets are found by iterative
scaling, and the ridge correction by L-BFGS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows.combination import combined
from trimtab.adaptivocab.rows.scoring import capped
from trimtab.adaptivocab.rows.targets import DistillationTargets

SHARES = (0.0, 0.15, 0.3, 0.45, 0.6)  # of the later tokens' logits
SCALING_ROUNDS = 15
EXPECTED = 0.01  # occurrences added to every class's, so that none is ruled out
CHUNK = 1024  # positions at a time
DAMPING = 1e-3  # of the second moment, over its mean eigenvalue
PENALTY = 32.0  # positions' worth of the mean square of what the ridge correction adds to a logit
RIDGE_STEPS = 15


@dataclass(frozen=True)
class HeadFeatures:
    """What the head is fitted on: every merged token of some passages is one position.

    Parameters
    ----------
    hidden : Tensor
        Final hidden states of the extended model, float32 of shape [positions, width].
    rest : Tensor
        Log-sum-exp of the logits of all base tokens that begin no n-gram, of shape [positions].
    targets : DistillationTargets
    softcap : float or None
        The model's, see `trimtab.models.facts.final_softcap`.
    """

    hidden: Tensor
    rest: Tensor
    targets: DistillationTargets
    softcap: float | None = None

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield hidden states, rests and target probabilities, some positions at a time."""
        for start in range(0, len(self.targets), CHUNK):
            end = min(start + CHUNK, len(self.targets))
            target = self.targets.dense(start, end).to(self.hidden.device)
            yield self.hidden[start:end], self.rest[start:end], target


def fit_head(weight: Tensor, ngrams: NGrams, features: HeadFeatures) -> tuple[Tensor, Tensor]:
    """Return the n-grams' rows and the changed rows of their first tokens.

    Parameters
    ----------
    weight : Tensor
        The base head, of shape [vocabulary, width].

    Returns
    -------
    rows, changed : Tensor
        float32 of shape [n-grams, width] and [firsts, width].
    """
    trie = features.targets.trie
    first = weight[trie.firsts.to(weight.device)].float()[trie.group.to(weight.device)]
    constant = constant_direction(features.hidden)
    later = _later_tokens(weight, ngrams, len(trie.firsts))
    later -= torch.outer(later @ features.hidden.mean(0), constant)
    candidates = [_matched(first + share * later, constant, features) for share in SHARES]
    rows = min(candidates, key=lambda rows: float(_loss(rows, features)[0]))
    rows = _matched(_ridge(rows, features), constant, features)
    return rows[: len(ngrams)], rows[len(ngrams) :]


def constant_direction(hidden: Tensor) -> Tensor:
    """Return u of shape [width] that brings u · h closest to 1 over the hidden states."""
    return torch.linalg.solve(_moment(hidden), hidden.mean(0))


def _moment(hidden: Tensor) -> Tensor:
    """Return the damped second moment of hidden states, of shape [width, width]."""
    moment = hidden.T @ hidden / len(hidden)
    damping = DAMPING * moment.diagonal().mean()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment + damping * identity


def _later_tokens(weight: Tensor, ngrams: NGrams, firsts: int) -> Tensor:
    """Return the sum of each n-gram's later rows, less the mean row each; zero for firsts."""
    tokens = ngrams.to_tensor()
    later = (tokens >= 0).double()
    later[:, 0] = 0
    rows = combined(weight, ngrams, later)
    rows -= torch.outer(later.sum(1).float().to(rows.device), weight.float().mean(0))
    return torch.cat([rows, rows.new_zeros(firsts, rows.shape[1])])


def _loss(rows: Tensor, features: HeadFeatures) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy in nats, and its gradient with respect to the rows."""
    total = rows.new_zeros(())
    gradient = torch.zeros_like(rows)
    for hidden, rest, target in features.chunks():
        logits = capped(hidden @ rows.T, features.softcap)
        log_probs = torch.cat([logits, rest[:, None]], 1).log_softmax(-1)
        other = 1 - target.sum(1)
        total -= (target * log_probs[:, :-1]).sum() + (other * log_probs[:, -1]).sum()
        error = log_probs[:, :-1].exp() - target
        if features.softcap is not None:
            error *= 1 - (logits / features.softcap).square()
        gradient += error.T @ hidden
    return total / len(features.targets), gradient / len(features.targets)


def _matched(rows: Tensor, constant: Tensor, features: HeadFeatures) -> Tensor:
    """Move every class's offset until it is predicted as often as the targets say."""
    logits = [hidden @ rows.T for hidden, _, _ in features.chunks()]
    wanted = sum(target.sum(0) for _, _, target in features.chunks())
    offsets = rows.new_zeros(len(rows))
    for _ in range(SCALING_ROUNDS):
        predicted = torch.zeros_like(offsets)
        for part, rest in zip(logits, features.rest.split(CHUNK), strict=True):
            moved = torch.cat([capped(part + offsets, features.softcap), rest[:, None]], 1)
            predicted += moved.softmax(-1)[:, :-1].sum(0)
        offsets += ((wanted + EXPECTED) / (predicted + EXPECTED)).log()
    return rows + torch.outer(offsets, constant)


def _ridge(rows: Tensor, features: HeadFeatures) -> Tensor:
    """Minimise the loss from `rows` on by L-BFGS, with a penalty on what is added to the logits."""
    values, vectors = torch.linalg.eigh(_moment(features.hidden))
    whitening = vectors * values.rsqrt() @ vectors.T
    added = torch.zeros_like(rows, requires_grad=True)
    penalty = PENALTY / len(features.targets)
    optimizer = torch.optim.LBFGS(
        [added], max_iter=RIDGE_STEPS, history_size=5, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def closure() -> Tensor:
        loss, gradient = _loss(rows + added @ whitening, features)
        added.grad = gradient @ whitening + 2 * penalty * added
        return loss + penalty * added.square().sum()

    optimizer.step(closure)
    return rows + added.detach() @ whitening
