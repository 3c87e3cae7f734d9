"""Who answers requests that arrive together, and their rounds in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.corpus import encode
from trimtab.errors import TrimtabError
from trimtab.evaluation.cache_memory import CacheKind
from trimtab.evaluation.contenders import Contender
from trimtab.evaluation.generators.continuous import ContinuousServer, quiet
from trimtab.evaluation.generators.engine_server import EngineServer
from trimtab.evaluation.generators.padded import PaddedServer, padded_tokens
from trimtab.evaluation.generators.server import Answer, Request, Server
from trimtab.evaluation.memory import twin
from trimtab.evaluation.metrics.metric import drawn
from trimtab.evaluation.pages import Pages
from trimtab.evaluation.workload import Prompt
from trimtab.generation.prompts import token_ids
from trimtab.models.facts import CacheShape

OWN_TEXT = "its texts are its own greedy ones: it cannot be made to produce a given text"


@dataclass
class Entrant:
    """A server in the rounds of one number of requests.

    Attributes
    ----------
    name : str
        ``candidate``, or the unmodified model as ``padded``, once more as ``control``, ``static``
        or ``continuous``.
    requests : list of Request
        What arrives, in the contender's tokens.
    make : callable
        Returns the server, and leaves in a stack what has to be closed.
    own_text : bool
        Whether it makes as many tokens of a text of its own.
    answers : list of Answer
        By round.
    refused : int
        Requests that it has no room for, even alone.
    failure : str or None
        Why there are no answers.
    """

    name: str
    requests: list[Request]
    make: Callable[[ExitStack], Server]
    own_text: bool = False
    answers: list[Answer] = field(default_factory=list)
    refused: int = 0
    failure: str | None = None

    def prepare(self, running: ExitStack) -> None:
        """Make the server and warm it up."""

        def made() -> None:
            self._server = self.make(running)
            room = self._server.capacity
            self._accepted = [one for one in self.requests if one.tokens <= room]
            self.refused = len(self.requests) - len(self._accepted)
            if not self._accepted:
                raise TrimtabError(f"serving.budget has room for {room} tokens: for no request")
            self._server.warm_up(self._accepted)

        self._guarded(made)

    def serve(self) -> None:
        """Take an answer."""
        self._guarded(lambda: self.answers.append(self._server.serve(self._accepted)))

    def _guarded(self, step: Callable[[], None]) -> None:
        """Note why a step failed: a peer that cannot serve here is no reason to end a job.

        Peers may raise anything. What the candidate raises beyond its refusals is a defect.
        """
        try:
            step()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            refusal = isinstance(error, TrimtabError | torch.OutOfMemoryError)
            if self.name == "candidate" and not refusal:
                raise
            self.failure = reason if refusal else f"{type(error).__name__}: {reason}"
            self.answers.clear()


def answer_in_turn(entrants: Sequence[Entrant], repeats: int, order: Random) -> Iterator[int]:
    """Have entrants answer in rounds, each in an order that is drawn; yield their numbers."""
    with ExitStack() as running:
        for one in entrants:
            one.prepare(running)
        for number in range(repeats):
            for one in drawn(order, entrants):
                if one.failure is None:
                    one.serve()
            yield number


def entrants_of(
    one: Contender, prompts: Sequence[Prompt], budget: int, peers: Sequence[str]
) -> list[Entrant]:
    """Return the servers of a contender.

    The candidate has one: the engine, where the stack needs it, or a padded batch. The baseline is
    served in a padded batch twice, as how far the second differs from the first is noise, and by
    its peers: ``static``, ``continuous``.
    """
    given = requests_of(prompts, one.tokenizer, one.output_tokenizer)
    size = CacheShape.of(one.model.config).token_bytes(one.model.dtype)

    def engine(running: ExitStack) -> Server:
        longest = max(request.tokens for request in given)
        slots = min(len(given), max(budget // Pages.of(one, longest).row, 1))
        return EngineServer(running.enter_context(one.running_engine(slots, longest, budget)))

    def padded(model: PreTrainedModel, kind: CacheKind) -> Callable[[ExitStack], Server]:
        return lambda _: PaddedServer(model, one.tokenizer, kind, budget, size)

    def continuous(running: ExitStack) -> Server:
        running.enter_context(quiet())
        server = ContinuousServer(one.model, given, budget, size)
        running.callback(server.close)
        return server

    if one.name == "candidate":
        own = engine if one.stack.needs_engine else padded(one.model, CacheKind.dynamic)
        return [Entrant("candidate", given, own)]
    kinds = {
        "padded": CacheKind.dynamic, "control": CacheKind.dynamic, "static": CacheKind.static,
    }  # fmt: skip
    found = [
        *(Entrant(name, given, padded(twin(one.model), kind)) for name, kind in kinds.items()),
        Entrant("continuous", given, continuous, own_text=True),
    ]
    return [entrant for entrant in found if entrant.name in ("padded", "control", *peers)]


def requests_of(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    output_tokenizer: PreTrainedTokenizerBase,
) -> list[Request]:
    """Return requests for the text that really follows each prompt."""
    texts = [encode(output_tokenizer, prompt.continuation) for prompt in prompts]
    return [
        Request(token_ids(tokenizer, prompt.text), len(text), text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def enough(contenders: Sequence[Contender], prompts: Sequence[Prompt]) -> int:
    """Return the bytes of keys and values that any server needs for all requests at once."""
    needs = []
    for one in contenders:
        size = CacheShape.of(one.model.config).token_bytes(one.model.dtype)
        base = requests_of(prompts, one.base_tokenizer, one.base_tokenizer)
        needs.append(padded_tokens(base) * size)
        if one.stack.needs_engine:
            own = requests_of(prompts, one.tokenizer, one.output_tokenizer)
            lengths = [request.tokens for request in own]
            needs.append(Pages.of(one, max(lengths)).needed(lengths))
    return max(needs)
