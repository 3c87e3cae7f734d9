"""Generation with our engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby, pairwise

from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.backing import huge_cache_bytes
from trimtab.corpus import encode
from trimtab.errors import TrimtabError
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.work import spent
from trimtab.evaluation.workload import Prompt
from trimtab.generation import Engine
from trimtab.generation.prompts import as_batch, token_ids
from trimtab.generation.stopping import stop_tokens
from trimtab.vattention.stats import KVStats


class EngineGenerator:
    """Generates with an engine that runs; see `Generator`.

    Parameters
    ----------
    engine : Engine
    model : PreTrainedModel
        The engine's.
    tokenizer, output_tokenizer : PreTrainedTokenizerBase
        Of prompts, and of generated text.
    """

    def __init__(
        self,
        engine: Engine,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        output_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.engine = engine
        self._tokenizer, self._output_tokenizer = tokenizer, output_tokenizer
        self._ends = sorted(stop_tokens(model, output_tokenizer))

    def logits(self, context: Sequence[int], text: Sequence[int]) -> Tensor:
        """See `Generator.logits`."""
        return self.engine.logits(context, text)

    def greedy(self, prompt: Prompt, new_tokens: int) -> str:
        """See `Generator.greedy`."""
        ids = token_ids(self._tokenizer, prompt.text)
        self._require_room(len(ids), new_tokens)
        device = str(self.engine.kv.lengths.device)
        goes_on = MinNewTokensLengthLogitsProcessor(len(ids), new_tokens, self._ends, device)
        (completion,) = self.engine.generate(
            as_batch([ids]),
            max_new_tokens=new_tokens,
            logits_processors=lambda _: LogitsProcessorList([goes_on] if self._ends else []),
        )
        text = self._output_tokenizer.decode(completion.tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def teacher_forced(self, prompt: Prompt) -> Timing:
        """See `Generator.teacher_forced`.

        The cache is measured when the last token is chosen, before its slot is given back.
        """
        ids = token_ids(self._tokenizer, prompt.text)
        continuation = encode(self._output_tokenizer, prompt.continuation)
        self._require_room(len(ids), len(continuation))
        tokens: list[int] = []
        at_end: list[KVStats] = []

        def on_token(index: int, token: int, text: str) -> None:
            tokens.append(token)
            if len(tokens) == len(continuation):
                at_end.append(self.engine.kv.stats())

        before = self.engine.step_seconds
        started = time.perf_counter()
        (completion,) = self.engine.generate(
            as_batch([ids]),
            max_new_tokens=len(continuation),
            on_token=on_token,
            given=[continuation],
        )
        total = time.perf_counter() - started
        work = spent(before, self.engine.step_seconds)
        assert tokens == continuation
        (held,) = at_end
        steps = [(moment, len(list(same))) for moment, same in groupby(completion.times)]
        moments = [moment for moment, _ in steps]
        return Timing(
            first=moments[0] - started,
            gaps=[after - before for before, after in pairwise(moments)],
            step_tokens=[count for _, count in steps],
            total=total,
            prompt_tokens=len(ids),
            new_tokens=len(continuation),
            prompt_size=len(prompt.text.encode()),
            size=len(prompt.continuation.encode()),
            live_bytes=held.live,
            committed_bytes=held.committed,
            reserved_bytes=held.reserved,
            measured_bytes=held.measured,
            huge_page_bytes=huge_cache_bytes(),  # a released slot keeps its pages
            step_seconds=work,
        )

    def _require_room(self, prompt: int, new_tokens: int) -> None:
        """Refuse a text that the engine would end early."""
        if prompt + new_tokens > (room := self.engine.capacity):
            raise TrimtabError(
                f"a prompt of {prompt} tokens and a text of {new_tokens}: the KV cache has room "
                f"for {room}; raise its budget, or lower generation.prompt_bytes or new_tokens"
            )
