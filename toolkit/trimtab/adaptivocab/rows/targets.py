"""What the extended model should predict, from what the base model predicts over the same text.

The base model predicts base tokens. At the start of each merged token the extended model predicts
merged ones. By the chain rule, an n-gram's right probability is that of its first token times those
of the others, each after the ones before; what remains of the first token's probability is that of
the first token by itself. One pass over the text gives the first factor everywhere, and the others
where the text really continues that way; elsewhere their averages stand in.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.adaptivocab.rows.passages import Passage
from trimtab.adaptivocab.rows.scoring import HiddenStates, logits_of
from trimtab.adaptivocab.rows.trie import Node, Trie

SMOOTHING = 2.0  # occurrences that the counted average of a conditional probability weighs


@dataclass(frozen=True)
class PassageTargets:
    """What the base model says about the merged tokens of one passage.

    Parameters
    ----------
    first : Tensor
        Probability of every n-gram's first token at the start of each merged token, float32 of
        shape [merged tokens, firsts].
    follow : list of dict
        For each merged token, the probabilities of what may come next along the text, where it
        begins with a first token.
    """

    first: Tensor
    follow: list[dict[Node, float]]

    @classmethod
    def of(
        cls, model: PreTrainedModel, passage: Passage, states: HiddenStates, trie: Trie
    ) -> PassageTargets:
        """Look up what n-grams need in the base model's hidden states over the passage."""
        log_probs = logits_of(model, states.hidden).log_softmax(-1)
        starts, firsts = (x.to(log_probs.device) for x in (passage.starts, trie.firsts))
        base = passage.base.tolist()
        rows = [dict(_following(base, start, trie)) for start in passage.starts.tolist()]
        # All in one move, as every move waits for the device.
        asked = [(place, node[-1]) for row in rows for node, place in row.items()]
        places, tokens = torch.tensor(asked, dtype=torch.int64).view(-1, 2).T.to(log_probs.device)
        found = iter(log_probs[places, tokens].exp().tolist())
        follow = [{node: next(found) for node in row} for row in rows]
        return cls(log_probs[starts][:, firsts].exp().cpu(), follow)


def _following(base: Sequence[int], position: int, trie: Trie) -> Iterator[tuple[Node, int]]:
    """Yield what may come next along a text, and the positions at which that is predicted."""
    node: Node = (base[position],)
    position += 1
    while position < len(base) and (children := trie.children.get(node)):
        for child in children:
            yield child, position
        node = (*node, base[position])
        position += 1


@dataclass(frozen=True)
class DistillationTargets:
    """What the extended head should say at the start of every merged token of some passages.

    Parameters
    ----------
    trie : Trie
    first : Tensor
        Probability of every first token, float32 of shape [positions, firsts].
    shares : Tensor
        How the probability of a first token is divided among its classes on average, float32 of
        shape [classes].
    positions, classes, known : Tensor
        Where the text continues with a first token, how it is divided right there: row, class and
        share, of shape [entries].
    """

    trie: Trie
    first: Tensor
    shares: Tensor
    positions: Tensor
    classes: Tensor
    known: Tensor

    @classmethod
    def of(
        cls,
        passages: Sequence[Passage],
        targets: Sequence[PassageTargets],
        trie: Trie,
        counted: dict[Node, float],
    ) -> DistillationTargets:
        """Combine passages' targets; `counted` are conditional probabilities of more text."""
        sums = {node: SMOOTHING * probability for node, probability in counted.items()}
        seen = dict.fromkeys(counted, SMOOTHING)
        for one in targets:
            for follow in one.follow:
                for node, probability in follow.items():
                    sums[node] += probability
                    seen[node] += 1
        mean = {node: sums[node] / seen[node] for node in sums}
        entries: list[tuple[int, int, float]] = []
        row = 0
        for passage, one in zip(passages, targets, strict=True):
            firsts = passage.base[passage.starts].tolist()
            for token, follow in zip(firsts, one.follow, strict=True):
                if follow:
                    split = trie.split((token,), ChainMap(follow, mean))
                    entries += [(row, number, share) for number, share in split.items()]
                row += 1
        rows, classes, known = zip(*entries, strict=True) if entries else ((), (), ())
        return cls(
            trie,
            torch.cat([one.first for one in targets]),
            trie.mean_shares(mean),
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor(classes, dtype=torch.int64),
            torch.tensor(known, dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.first)

    def dense(self, start: int, end: int) -> Tensor:
        """Return the probability of every class, float32 of shape [end - start, classes]."""
        group = self.trie.group
        shares = self.shares.repeat(end - start, 1)
        inside = slice(*torch.searchsorted(self.positions, torch.tensor([start, end])).tolist())
        shares[self.positions[inside] - start, self.classes[inside]] = self.known[inside]
        return self.first[start:end][:, group] * shares
