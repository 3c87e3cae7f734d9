"""Many requests together in transformers' `generate`: one batch, padded on the left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.evaluation.cache_memory import CacheKind, CacheMemory, batch_memory
from trimtab.evaluation.generators.generator import ForcedContinuations
from trimtab.evaluation.generators.server import Answer, Request, require_all
from trimtab.generation.transformers import Clock, plainly_generating
from trimtab.models.adapter import module_device
from trimtab.models.facts import longest_text

WARM_UP = 2  # tokens


class PaddedServer:
    """Answers requests with `model.generate`; see `Server`.

    A batch ends with its longest text. Under a budget there are several, one after another, each of
    as many requests as it has room for, in the order of their arrival.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    kind : CacheKind
        The static cache is as long as the batch's texts need; its steps are not compiled.
    budget : int, optional
        The most bytes of keys and values; no limit where None.
    token_bytes : int
        Bytes of the keys and values of a token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        kind: CacheKind = CacheKind.dynamic,
        budget: int | None = None,
        token_bytes: int = 1,
    ) -> None:
        self._model, self._tokenizer, self._kind = model, tokenizer, kind
        self._room = None if budget is None else budget // token_bytes  # tokens
        self._device = module_device(model.get_input_embeddings())

    @property
    def capacity(self) -> int:
        """See `Server.capacity`."""
        longest = longest_text(self._model.config)
        return longest if self._room is None else min(longest, self._room)

    def warm_up(self, requests: Sequence[Request]) -> None:
        """See `Server.warm_up`."""
        self.serve([request.begun(WARM_UP) for request in requests])

    @torch.inference_mode()
    def serve(self, requests: Sequence[Request]) -> Answer:
        """See `Server.serve`."""
        tokens: list[list[int]] = []
        first: list[float] = []
        held: list[CacheMemory] = []
        batches = list(self._batches(requests))
        arrived, measuring = time.perf_counter(), 0.0
        for batch in batches:
            output, clock = self._generate(batch)
            ended = time.perf_counter()
            first += [clock.times[1] - arrived - measuring] * len(batch)
            lengths = [request.cached for request in batch]
            held.append(batch_memory(output.past_key_values, lengths))
            generated = output.sequences[:, -max(request.new for request in batch) :].tolist()
            tokens += [row[: one.new] for one, row in zip(batch, generated, strict=True)]
            measuring += time.perf_counter() - ended
        seconds = time.perf_counter() - arrived - measuring
        require_all(requests, tokens)
        largest = max(held, key=lambda one: one.committed)
        return Answer(seconds, first, tokens, max(map(len, batches)), 0, largest)

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        batch: list[Request] = []
        for request in requests:
            joined = [*batch, request]
            if batch and self._room is not None and padded_tokens(joined) > self._room:
                yield batch
                joined = [request]
            batch = joined
        yield batch

    def _generate(self, batch: Sequence[Request]) -> tuple[Any, Clock]:
        longest = max(len(request.prompt) for request in batch)
        new = max(request.new for request in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, longest - len(request.prompt) :] = 1
        options: dict[str, Any] = {}
        if given := [request.given for request in batch if request.given]:
            forced = ForcedContinuations(longest, given, self._device)
            options["logits_processor"] = LogitsProcessorList([forced])
        if self._kind is CacheKind.static:
            options |= {"cache_implementation": "static", "disable_compile": True}
        clock, plain = Clock(), plainly_generating(self._model, self._tokenizer, endless=True)
        output = plain.generate(  # type: ignore[operator]
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            do_sample=False,
            max_new_tokens=new,
            streamer=clock,
            return_dict_in_generate=True,
            **options,
        )
        return output, clock


def padded_tokens(requests: Sequence[Request]) -> int:
    """Return how many tokens a padded batch holds at its end, with the padding."""
    longest = max(len(request.prompt) for request in requests)
    return len(requests) * (longest + max(request.new for request in requests) - 1)
