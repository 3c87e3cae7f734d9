"""What the base model says about a text, as the extended vocabulary has to say it.

The base model predicts base tokens; the extended one, at the start of each merged token, predicts
merged ones. By the chain rule the right probability of an n-gram is that of its first piece times
those of the others, each after the ones before; what remains of the first piece's probability is
the bare first piece's. Reading the text once gives the first factor everywhere, and the others
where the text really goes on that way; elsewhere their averages stand in.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from toolkit.adaptivocab.passages import Passage
from toolkit.adaptivocab.trie import Node, Trie
from toolkit.models.adapter import module_device

SMOOTHING = 2.0  # occurrences that the counted average of a conditional probability weighs


@dataclass(frozen=True)
class Reading:
    """The base model's reading of a passage.

    Parameters
    ----------
    nats : Tensor
        Negative log-probability of every base token, float64 of shape [base tokens].
    first : Tensor
        Probability of every n-gram's first piece at the start of each merged token, float32 of
        shape [merged tokens, firsts].
    follow : list of dict
        For each merged token that begins with a first piece, the probabilities of what may come
        next along the text; empty for the others.
    """

    nats: Tensor
    first: Tensor
    follow: list[dict[Node, float]]


@torch.inference_mode()
def predictions(model: PreTrainedModel, ids: Tensor, start: int | None) -> tuple[Tensor, Tensor]:
    """Return what a model expects at every token, and from which hidden state.

    Parameters
    ----------
    ids : Tensor
        int64 of shape [tokens].
    start : int or None
        Token put before the text. Without one, nothing is known about the first token: the
        distribution is uniform there and the hidden state zero.

    Returns
    -------
    logits : Tensor
        float32 of shape [tokens, vocabulary].
    hidden : Tensor
        What the head read, float32 of shape [tokens, width].
    """
    head = model.get_output_embeddings()
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]))
    prefix = [] if start is None else [start]
    text = torch.cat([torch.tensor(prefix, dtype=torch.int64), ids])
    try:
        device = module_device(model.get_input_embeddings())
        logits = model(input_ids=text[None].to(device), use_cache=False).logits[0].float()
    finally:
        handle.remove()
    hidden = seen[0].float()
    if start is None:
        logits, hidden = (torch.cat([torch.zeros_like(x[:1]), x]) for x in (logits, hidden))
    return logits[:-1], hidden[:-1]


def read(model: PreTrainedModel, passage: Passage, trie: Trie, start: int | None) -> Reading:
    """Have the base model read a passage."""
    logits, _ = predictions(model, passage.base, start)
    log_probs = logits.log_softmax(-1)
    base = passage.base.to(logits.device)
    nats = -log_probs.gather(1, base[:, None])[:, 0].double().cpu()
    first = (
        log_probs[passage.starts.to(logits.device)][:, trie.firsts.to(logits.device)].exp().cpu()
    )
    follow = [
        _follow(passage.base.tolist(), position, trie, log_probs)
        for position in passage.starts.tolist()
    ]
    return Reading(nats, first, follow)


def _follow(base: Sequence[int], position: int, trie: Trie, log_probs: Tensor) -> dict[Node, float]:
    found: dict[Node, float] = {}
    node: Node = (base[position],)
    position += 1
    while position < len(base) and (children := trie.children.get(node)):
        last = torch.tensor([child[-1] for child in children], device=log_probs.device)
        probabilities = log_probs[position, last].exp().tolist()
        found |= dict(zip(children, probabilities, strict=True))
        node = (*node, base[position])
        position += 1
    return found


@dataclass(frozen=True)
class Targets:
    """What the extended head should say, at the start of every merged token of some passages.

    Parameters
    ----------
    trie : Trie
    first : Tensor
        Probability of every first piece, float32 of shape [positions, firsts].
    shares : Tensor
        How the probability of a first piece is divided among its classes on average, float32 of
        shape [classes].
    positions, classes, known : Tensor
        Where the text goes on with a first piece, how it is divided right there: row, class and
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
        readings: Sequence[Reading],
        trie: Trie,
        counted: dict[Node, float],
    ) -> Targets:
        """Combine readings; `counted` are conditional probabilities counted on more text."""
        sums = {node: SMOOTHING * probability for node, probability in counted.items()}
        seen = dict.fromkeys(counted, SMOOTHING)
        for reading in readings:
            for follow in reading.follow:
                for node, probability in follow.items():
                    sums[node] += probability
                    seen[node] += 1
        mean = {node: sums[node] / seen[node] for node in sums}
        entries: list[tuple[int, int, float]] = []
        row = 0
        for passage, reading in zip(passages, readings, strict=True):
            firsts = passage.base[passage.starts].tolist()
            for token, follow in zip(firsts, reading.follow, strict=True):
                if follow:
                    split = trie.split((token,), ChainMap(follow, mean))
                    entries += [(row, number, share) for number, share in split.items()]
                row += 1
        rows, classes, known = zip(*entries, strict=True) if entries else ((), (), ())
        return cls(
            trie,
            torch.cat([reading.first for reading in readings]),
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
