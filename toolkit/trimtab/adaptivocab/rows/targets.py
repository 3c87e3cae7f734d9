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

from trimtab.adaptivocab.rows.passages import Passage, with_start
from trimtab.adaptivocab.rows.trie import Node, Trie
from trimtab.models.adapter import module_device

SMOOTHING = 2.0  # occurrences that the counted average of a conditional probability weighs


@dataclass(frozen=True)
class Reading:
    """What a model expects at every token of a text.

    Parameters
    ----------
    nats : Tensor
        Negative log-probability of every token, float64 of shape [tokens].
    hidden : Tensor
        What the head read to predict each, float32 of shape [tokens, width], on the host.
    """

    nats: Tensor
    hidden: Tensor


@torch.no_grad()
def predict(model: PreTrainedModel, ids: Tensor, start: int | None) -> tuple[Tensor, Tensor]:
    """Return what a model expects at every token, and the hidden state it expects it from.

    Parameters
    ----------
    ids : Tensor
        int64 of shape [tokens].
    start : int or None
        Token put before the text. Without one the first token is predicted from nothing: zeros.

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
    text = with_start(ids, start)
    try:
        device = module_device(model.get_input_embeddings())
        logits = model(input_ids=text[None].to(device), use_cache=False).logits[0].float()
    finally:
        handle.remove()
    hidden = seen[0].float()
    if start is None:
        logits, hidden = (torch.cat([torch.zeros_like(x[:1]), x]) for x in (logits, hidden))
    return logits[:-1], hidden[:-1]


def read(
    model: PreTrainedModel, ids: Tensor, start: int | None, asked: Tensor | None = None
) -> Reading:
    """Have a model read a text, see `predict`.

    Parameters
    ----------
    asked : Tensor, optional
        Whose log-probability is taken at every token, of the shape of `ids`; the token's own
        where None.
    """
    logits, hidden = predict(model, ids, start)
    targets = (ids if asked is None else asked).to(logits.device)
    nats = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double()
    return Reading(nats.cpu(), hidden.cpu())


@torch.no_grad()
def expected(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits, float32 of shape [tokens, vocabulary], that hidden states lead to."""
    head = model.get_output_embeddings()
    logits = head(hidden.to(head.weight)).float()
    return capped(logits, soft_cap(model))


def soft_cap(model: PreTrainedModel) -> float | None:
    """Return the bound that a model bends its logits to, if it has one (Gemma 2)."""
    cap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return cap


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return logits bent to stay within `cap` on both sides."""
    return logits if cap is None else cap * (logits / cap).tanh()


@dataclass(frozen=True)
class Lesson:
    """What the base model teaches about the merged tokens of a passage.

    Parameters
    ----------
    first : Tensor
        Probability of every n-gram's first piece at the start of each merged token, float32 of
        shape [merged tokens, firsts].
    follow : list of dict
        For each merged token, the probabilities of what may come next along the text, where it
        begins with a first piece.
    """

    first: Tensor
    follow: list[dict[Node, float]]

    @classmethod
    def of(cls, model: PreTrainedModel, passage: Passage, reading: Reading, trie: Trie) -> Lesson:
        """Look up in the base model's reading of a passage what its n-grams need."""
        log_probs = expected(model, reading.hidden).log_softmax(-1)
        starts, firsts = (x.to(log_probs.device) for x in (passage.starts, trie.firsts))
        base = passage.base.tolist()
        follow = [_follow(base, start, trie, log_probs) for start in passage.starts.tolist()]
        return cls(log_probs[starts][:, firsts].exp().cpu(), follow)


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
        lessons: Sequence[Lesson],
        trie: Trie,
        counted: dict[Node, float],
    ) -> Targets:
        """Combine lessons; `counted` are conditional probabilities counted on more text."""
        sums = {node: SMOOTHING * probability for node, probability in counted.items()}
        seen = dict.fromkeys(counted, SMOOTHING)
        for lesson in lessons:
            for follow in lesson.follow:
                for node, probability in follow.items():
                    sums[node] += probability
                    seen[node] += 1
        mean = {node: sums[node] / seen[node] for node in sums}
        entries: list[tuple[int, int, float]] = []
        row = 0
        for passage, lesson in zip(passages, lessons, strict=True):
            firsts = passage.base[passage.starts].tolist()
            for token, follow in zip(firsts, lesson.follow, strict=True):
                if follow:
                    split = trie.split((token,), ChainMap(follow, mean))
                    entries += [(row, number, share) for number, share in split.items()]
                row += 1
        rows, classes, known = zip(*entries, strict=True) if entries else ((), (), ())
        return cls(
            trie,
            torch.cat([lesson.first for lesson in lessons]),
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
