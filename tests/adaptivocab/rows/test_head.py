from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from trimtab.adaptivocab.ngrams import NGrams
from trimtab.adaptivocab.rows import head
from trimtab.adaptivocab.rows.combination import combined, weights
from trimtab.adaptivocab.rows.head import CHUNK, DAMPING, HeadFeatures, constant_direction, fit_head
from trimtab.adaptivocab.rows.targets import DistillationTargets
from trimtab.adaptivocab.rows.trie import Trie
from trimtab.adaptivocab.settings import Rows

BASE, WIDTH = 40, 12
POSITIONS = 2 * CHUNK + 500
NGRAMS = NGrams(BASE, ((3, 7), (3, 5), (3, 7, 11), (9, 3), (20, 21, 22, 23), (20, 4)))
FIRSTS = [3, 9, 20]
GROUP = torch.tensor([0, 0, 0, 1, 2, 2, 0, 1, 2])
OTHERS = [token for token in range(BASE) if token not in FIRSTS]

seeds = pytest.mark.parametrize("seed", range(3))


@dataclass
class Problem:
    """Hidden states whose first entry is always 1, a base head, and what to predict from them."""

    weight: Tensor
    features: HeadFeatures
    target: Tensor

    @property
    def exponential(self) -> Tensor:
        """The paper's rows, and those of the first tokens as they are."""
        rows = combined(self.weight, NGRAMS, weights(NGRAMS, Rows.exponential, head=True))
        return torch.cat([rows, self.weight[FIRSTS]])


def states(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator)
    hidden[:, 0] = 1
    return hidden, torch.randn(BASE, WIDTH, generator=generator) * 0.7


def problem(hidden: Tensor, weight: Tensor, target: Tensor) -> Problem:
    first = torch.zeros(POSITIONS, 3).index_add(1, GROUP, target)
    known = target / first[:, GROUP]
    targets = DistillationTargets(
        Trie(NGRAMS),
        first,
        known.mean(0),
        torch.arange(POSITIONS).repeat_interleave(9),
        torch.arange(9).repeat(POSITIONS),
        known.flatten(),
    )
    rest = (hidden @ weight[OTHERS].T).logsumexp(1)
    return Problem(weight, HeadFeatures(hidden, rest, targets), target)


def predicted(rows: Tensor, features: HeadFeatures) -> Tensor:
    logits = torch.cat([features.hidden @ rows.T, features.rest[:, None]], 1)
    return logits.softmax(1)[:, :-1]


def expressed_by(rows: Tensor, hidden: Tensor, weight: Tensor) -> Problem:
    rest = (hidden @ weight[OTHERS].T).logsumexp(1)
    target = torch.cat([hidden @ rows.T, rest[:, None]], 1).softmax(1)[:, :-1]
    return problem(hidden, weight, target)


def within_the_family(seed: int) -> tuple[Problem, Tensor]:
    """Return a problem, and the rows with which everything is predicted as it should be."""
    hidden, weight = states(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    rows = weight[FIRSTS][GROUP] + 0.3 * torch.randn(9, WIDTH, generator=generator)
    rows[:, 0] += torch.linspace(-2, 0, 9)
    return expressed_by(rows, hidden, weight), rows


def divided(seed: int) -> Problem:
    """Return a problem as the base model poses it: its first tokens' probabilities, divided."""
    hidden, weight = states(seed)
    first = (hidden @ weight.T).softmax(1)[:, FIRSTS]
    generator = torch.Generator().manual_seed(200 + seed)
    scores = hidden @ torch.randn(WIDTH, 9, generator=generator) * 0.4
    shares = scores.exp() / torch.zeros(POSITIONS, 3).index_add(1, GROUP, scores.exp())[:, GROUP]
    return problem(hidden, weight, first[:, GROUP] * shares)


def divergence(rows: Tensor, of: Problem) -> float:
    """Return the mean Kullback-Leibler divergence from the target over the whole vocabulary."""
    found = predicted(rows, of.features)
    found, target = (
        torch.cat([part, 1 - part.sum(1, keepdim=True)], 1).double().clamp_min(1e-12)
        for part in (found, of.target)
    )
    return float((target * (target / found).log()).sum(1).mean())


def group_mass(rows: Tensor, of: Problem) -> Tensor:
    found = predicted(rows, of.features)
    return torch.zeros(POSITIONS, 3).index_add(1, GROUP, found)


@seeds
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_loss_and_its_gradient_are_the_cross_entropys(seed, softcap):
    of = divided(seed)
    rows = of.exponential.requires_grad_()
    raw = of.features.hidden @ rows.T
    bent = raw if softcap is None else softcap * torch.tanh(raw / softcap)
    logits = torch.cat([bent, of.features.rest[:, None]], 1)
    whole = torch.cat([of.target, 1 - of.target.sum(1, keepdim=True)], 1)
    expected = torch.nn.functional.cross_entropy(logits, whole)
    expected.backward()
    loss, gradient = head._loss(rows.detach(), replace(of.features, softcap=softcap))
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, rows.grad, rtol=1e-4, atol=1e-6)


@seeds
def test_the_constant_direction_is_the_one_nearest_to_1(seed):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(WIDTH, generator=generator)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator) + mean

    def distance(direction: Tensor) -> float:
        damping = DAMPING * float(hidden.square().mean())
        error = (hidden.double() @ direction.double() - 1).square().mean()
        return float(error + damping * direction.double().square().sum())

    found = constant_direction(hidden)
    assert distance(found) < 1
    for other in torch.randn(50, WIDTH, generator=generator):
        assert distance(found + 0.1 * other) > distance(found)
        assert distance(found + 0.01 * other) > distance(found)


def test_the_constant_direction_finds_an_entry_that_never_changes():
    hidden, _ = states(0)
    torch.testing.assert_close(
        hidden @ constant_direction(hidden), torch.ones(POSITIONS), rtol=0, atol=0.02
    )


@seeds
def test_matched_rows_predict_every_class_as_often_as_it_is_wanted(seed):
    of = divided(seed)
    constant = torch.eye(WIDTH)[0]
    before = predicted(of.exponential, of.features).sum(0)
    matched = head._matched(of.exponential, constant, of.features)
    wanted = of.target.sum(0)
    assert ((before / wanted).log().abs() > 0.2).sum() > 4
    torch.testing.assert_close(predicted(matched, of.features).sum(0), wanted, rtol=2e-3, atol=0)
    assert torch.equal(matched[:, 1:], of.exponential[:, 1:])


def test_what_never_occurs_is_not_ruled_out():
    of = divided(0)
    of.target[:, 1] = 0
    never = problem(of.features.hidden, of.weight, of.target).features
    matched = head._matched(of.exponential, torch.eye(WIDTH)[0], never)
    assert matched.isfinite().all()
    assert float(predicted(matched, never).sum(0)[1]) < 0.1


@seeds
def test_the_ridge_correction_lowers_the_loss_and_leaves_the_truth_alone(seed):
    of, truth = within_the_family(seed)
    assert float(head._loss(truth, of.features)[1].abs().max()) < 1e-5
    torch.testing.assert_close(head._ridge(truth, of.features), truth, rtol=0, atol=1e-3)
    begun = of.exponential
    corrected = head._ridge(begun, of.features)
    assert divergence(corrected, of) < 0.5 * divergence(begun, of)


def test_the_ridge_correction_is_where_loss_and_penalty_balance(monkeypatch):
    """Adding to a logit costs its mean square, as often as there are `PENALTY` positions."""
    monkeypatch.setattr(head, "RIDGE_STEPS", 300)
    of, _ = within_the_family(0)
    corrected = head._ridge(of.exponential, of.features)

    def objective(rows: Tensor) -> Tensor:
        added = (rows - of.exponential).double()
        moment = head._moment(of.features.hidden).double()
        penalty = head.PENALTY / len(of.target) * (added @ moment * added).sum()
        hidden, rest = of.features.hidden.double(), of.features.rest.double()
        whole = torch.cat([of.target, 1 - of.target.sum(1, keepdim=True)], 1).double()
        logits = torch.cat([hidden @ rows.double().T, rest[:, None]], 1)
        return torch.nn.functional.cross_entropy(logits, whole) + penalty

    corrected.requires_grad_()
    objective(corrected).backward()
    begun = of.exponential.requires_grad_()
    objective(begun).backward()
    assert float(corrected.grad.norm()) < 0.01 * float(begun.grad.norm())


@seeds
def test_the_fit_comes_closer_than_the_papers_rows(seed):
    of, _ = within_the_family(seed)
    rows, changed = fit_head(of.weight, NGRAMS, of.features)
    assert rows.shape == (6, WIDTH)
    assert changed.shape == (3, WIDTH)
    assert divergence(torch.cat([rows, changed]), of) < 0.35 * divergence(of.exponential, of)


@seeds
def test_without_a_penalty_the_fit_recovers_what_rows_can_express(seed, monkeypatch):
    monkeypatch.setattr(head, "PENALTY", 1e-3)
    monkeypatch.setattr(head, "RIDGE_STEPS", 100)
    of, _ = within_the_family(seed)
    fitted = torch.cat(fit_head(of.weight, NGRAMS, of.features))
    assert divergence(fitted, of) < 1e-4


@seeds
def test_the_share_of_later_tokens_logits_is_found(seed, monkeypatch):
    monkeypatch.setattr(head, "PENALTY", 1e6)  # so that nothing else can make up for it
    hidden, weight = states(seed)
    for share in head.SHARES:
        rows = weight[FIRSTS][GROUP].clone()
        for number, ngram in enumerate(NGRAMS.tokens):
            rows[number] += share * sum(weight[token] - weight.mean(0) for token in ngram[1:])
        rows[:, 0] += torch.linspace(-2, 0, 9)
        of = expressed_by(rows, hidden, weight)
        assert divergence(torch.cat(fit_head(weight, NGRAMS, of.features)), of) < 1e-4


@seeds
def test_the_fit_divides_first_tokens_probabilities_instead_of_doubling_them(seed):
    of = divided(seed)
    fitted = torch.cat(fit_head(of.weight, NGRAMS, of.features))
    base = of.features.targets.first
    assert (group_mass(of.exponential, of).mean(0) > 1.3 * base.mean(0)).all()
    torch.testing.assert_close(group_mass(fitted, of).mean(0), base.mean(0), rtol=0.01, atol=0)
    assert float((group_mass(fitted, of) - base).abs().mean()) < 0.02
    assert float(head._loss(fitted, of.features)[0]) < float(
        head._loss(of.exponential, of.features)[0]
    )


def test_later_tokens_count_each_against_the_mean_row():
    _, weight = states(0)
    found = head._later_tokens(weight, NGRAMS, 3)
    mean = weight.mean(0)
    for row, ngram in zip(found, NGRAMS.tokens, strict=False):
        expected = sum(weight[token] - mean for token in ngram[1:])
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == (9, WIDTH)
    assert not found[6:].any()
