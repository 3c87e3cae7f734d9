"""How many tokens to draft: as many as make a step yield the most tokens in its time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from trimtab.capabilities import Drafter
from trimtab.generation.cost_cache import StepCosts
from trimtab.generation.request import Request

# What a step with drafts has to promise, over one without. Costs may be a few percent off.
WORTH = 1.05
TRUST = 2.0  # tokens, promised and accepted, that a text begins with
DECAY = 0.995  # of what earlier drafts count, with each later step


class Drafts:
    """The drafts of the sequences of one call of the engine.

    Parameters
    ----------
    drafter : Drafter
    costs : StepCosts
    undrafted : frozenset of int
        Special tokens; a draft is cut before the first of them.
    """

    def __init__(self, drafter: Drafter, costs: StepCosts, undrafted: frozenset[int]) -> None:
        self._drafter, self._costs, self._undrafted = drafter, costs, undrafted
        self._texts: dict[int, _Text] = {}  # by the index of the request

    def choose(self, requests: Sequence[Request]) -> dict[int, list[int]]:
        """Return the tokens to draft for requests that decode together, by index, if any.

        A drafted token adds the probability that its draft is right up to it. Those that add the
        most come first, whoever's they are, and as many as promise the most tokens in the time
        that a step over so many rows takes.
        """
        rows = len(requests)
        room = self._costs.most_rows - rows
        if room < 1:
            return {}
        offers: list[tuple[float, int, int]] = []
        for request in requests:
            chances = self._text(request).propose(request, room, self._undrafted)
            offers += ((chance, request.index, token) for token, chance in chances)
        offers.sort(key=lambda offer: -offer[0])  # the tokens of a draft stay in their order
        expected, taken = float(rows), 0
        most = WORTH * expected / self._costs.of(rows)
        for number, (chance, _, _) in enumerate(offers[:room], 1):
            expected += chance
            if (rate := expected / self._costs.of(rows + number)) > most:
                most, taken = rate, number
        drafts: dict[int, list[int]] = {}
        for _, index, token in offers[:taken]:
            drafts.setdefault(index, []).append(token)
        return drafts

    def judge(self, index: int, drafted: int, accepted: int) -> None:
        """Take in how many of the drafted tokens of a request were accepted."""
        self._texts[index].judge(drafted, accepted)

    def forget(self, index: int) -> None:
        """Drop what is known of a request, which has ended or begins anew."""
        self._texts.pop(index, None)

    def _text(self, request: Request) -> _Text:
        if request.index not in self._texts:
            self._texts[request.index] = _Text(self._drafter, request)
        return self._texts[request.index]


class _Text:
    """One text: its drafts, and what became of them."""

    def __init__(self, drafter: Drafter, request: Request) -> None:
        self._session = drafter.start(request.ids)
        self._known = len(request.ids)
        self._promised = self._accepted = 0.0
        self._last: list[float] = []  # the probabilities of the newest proposal

    def propose(
        self, request: Request, room: int, undrafted: frozenset[int]
    ) -> list[tuple[int, float]]:
        """Return tokens, and the probability that the draft is right up to each of them.

        They are few enough that the token chosen after them still has room. Where drafts were
        accepted less often than promised, probabilities shrink by as much; what happened is
        forgotten step by step, so that a drafter is tried again.
        """
        self._session.accept(request.ids[self._known :])
        self._known = len(request.ids)
        self._promised, self._accepted = self._promised * DECAY, self._accepted * DECAY
        trust = min((self._accepted + TRUST) / (self._promised + TRUST), 1.0)
        proposed = self._session.propose(min(room, request.left - 1))
        proposed = list(takewhile(lambda one: one[0] not in undrafted, proposed))
        self._last = [probability for _, probability in proposed]
        chances, chance = [], 1.0
        for token, probability in proposed:
            chance *= trust * probability
            chances.append((token, chance))
        return chances

    def judge(self, drafted: int, accepted: int) -> None:
        """Take in how many of the first `drafted` tokens of the newest proposal were accepted."""
        self._accepted += accepted
        self._promised += sum(self._last[: min(accepted + 1, drafted)])
