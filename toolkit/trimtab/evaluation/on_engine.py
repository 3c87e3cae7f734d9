"""Generation with the engine, as `trimtab.evaluation.generation` has it with transformers."""

from __future__ import annotations

import time
from itertools import groupby, pairwise

from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.corpus import encode
from trimtab.evaluation.generation import Replay, prompt_ids
from trimtab.evaluation.text import Prompt
from trimtab.evaluation.timing import Timing
from trimtab.generation import Engine
from trimtab.generation.stopping import stop_tokens
from trimtab.vattention.stats import KVStats


def replay(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    output_tokenizer: PreTrainedTokenizerBase,
) -> Timing:
    """Time the generation of the text that really follows the prompt.

    The cache is measured when the last token is chosen, before its slot is given back.
    """
    ids = prompt_ids(tokenizer, prompt)
    continuation = encode(output_tokenizer, prompt.continuation)
    tokens: list[int] = []
    at_end: list[KVStats] = []

    def on_token(index: int, token: int, text: str) -> None:
        tokens.append(token)
        if len(tokens) == len(continuation):
            at_end.append(engine.kv.stats())

    started = time.perf_counter()
    (completion,) = engine.generate(
        [ids],
        max_new_tokens=len(continuation),
        on_token=on_token,
        logits_processors=lambda _: LogitsProcessorList([Replay(len(ids), continuation)]),
    )
    total = time.perf_counter() - started
    assert tokens == continuation
    (held,) = at_end
    steps = [(moment, len(list(same))) for moment, same in groupby(completion.times)]
    moments = [moment for moment, _ in steps]
    return Timing(
        first=moments[0] - started,
        gaps=[after - before for before, after in pairwise(moments)],
        step_tokens=[tokens for _, tokens in steps],
        total=total,
        prompt_tokens=len(ids),
        new_tokens=len(continuation),
        prompt_size=len(prompt.text.encode()),
        size=len(prompt.continuation.encode()),
        live_bytes=held.live,
        committed_bytes=held.committed,
        reserved_bytes=held.reserved,
        measured_bytes=held.measured,
    )


def greedy(
    engine: Engine,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new_tokens: int,
    output_tokenizer: PreTrainedTokenizerBase,
) -> str:
    """Return the text the model itself continues the prompt with, of `new_tokens` tokens."""
    ids = prompt_ids(tokenizer, prompt)
    ends = sorted(stop_tokens(model, output_tokenizer))
    device = str(engine.kv.lengths.device)
    goes_on = MinNewTokensLengthLogitsProcessor(len(ids), new_tokens, ends, device)
    (completion,) = engine.generate(
        [ids],
        max_new_tokens=new_tokens,
        logits_processors=lambda _: LogitsProcessorList([goes_on] if ends else []),
    )
    text = output_tokenizer.decode(completion.tokens, skip_special_tokens=True)
    assert isinstance(text, str)
    return text
