"""Generation with transformers' own loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.corpus import encode
from trimtab.evaluation.cache_memory import CacheKind, CacheMemory, cache_bytes, cache_memory
from trimtab.evaluation.generators.generator import ForcedContinuations
from trimtab.evaluation.timing import Timing
from trimtab.evaluation.workload import Prompt
from trimtab.generation.prompts import token_ids
from trimtab.generation.transformers import Clock, plainly_generating
from trimtab.models.adapter import module_device, positions_of


class TransformersGenerator:
    """Generates with `model.generate`, on transformers' own cache; see `Generator`.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
        Of prompts.
    output_tokenizer : PreTrainedTokenizerBase, optional
        Of generated text; that of prompts where None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        output_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._output_tokenizer = output_tokenizer or tokenizer

    @torch.inference_mode()
    def logits(self, context: Sequence[int], text: Sequence[int]) -> Tensor:
        """See `Generator.logits`. The context is prefilled, the text scored on top of its cache."""
        device, model = _device(self._model), self._model
        prompt, target = (torch.tensor([part], device=device) for part in (context, text))
        places = positions_of(model, prompt)
        first = model(input_ids=prompt, use_cache=True, logits_to_keep=1, **places)
        if len(text) == 1:  # which nothing is read after
            return first.logits[0]
        text_ids, cache = target[:, :-1], first.past_key_values
        places = positions_of(model, text_ids, len(context))
        then = model(input_ids=text_ids, past_key_values=cache, **places)
        return torch.cat([first.logits[0], then.logits[0]])

    def greedy(self, prompt: Prompt, new_tokens: int) -> str:
        """See `Generator.greedy`."""
        ids = token_ids(self._tokenizer, prompt.text)
        output = _generate(self._model, self._tokenizer, ids, new_tokens, endless=False)
        generated = output.sequences[0, len(ids) :]
        text = self._output_tokenizer.decode(generated, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def teacher_forced(self, prompt: Prompt) -> Timing:
        """See `Generator.teacher_forced`."""
        continuation = encode(self._output_tokenizer, prompt.continuation)
        ids = token_ids(self._tokenizer, prompt.text)
        forced = ForcedContinuations(len(ids), [continuation], _device(self._model))
        clock = Clock()
        started = time.perf_counter()
        output = _generate(
            self._model,
            self._tokenizer,
            ids,
            len(continuation),
            streamer=clock,
            logits_processor=LogitsProcessorList([forced]),
        )
        total = time.perf_counter() - started
        moments = clock.times[1:]
        live, committed = cache_bytes(output.past_key_values)
        return Timing(
            first=moments[0] - started,
            gaps=[after - before for before, after in pairwise(moments)],
            step_tokens=clock.tokens[1:],
            total=total,
            prompt_tokens=len(ids),
            new_tokens=len(continuation),
            prompt_size=len(prompt.text.encode()),
            size=len(prompt.continuation.encode()),
            live_bytes=live,
            committed_bytes=committed,
            reserved_bytes=committed,
        )


def transformers_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new_tokens: int,
    kind: CacheKind,
) -> CacheMemory:
    """Return what one of transformers' caches holds at the end of a generation."""
    options: dict[str, Any] = {}
    if kind is CacheKind.static:
        options = {"cache_implementation": "static", "disable_compile": True}

    ids = token_ids(tokenizer, prompt.text)

    def make() -> Any:
        return _generate(model, tokenizer, ids, new_tokens, **options).past_key_values

    return cache_memory(make, _device(model))


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    endless: bool = True,
    **options: Any,
) -> Any:
    """Generate exactly `new_tokens` tokens: stop tokens end nothing, or are not chosen."""
    ids = torch.tensor([prompt], device=_device(model))
    generate: Any = plainly_generating(model, tokenizer, endless=endless).generate
    return generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=None if endless else new_tokens,
        max_new_tokens=new_tokens,
        return_dict_in_generate=True,
        **options,
    )


def _device(model: PreTrainedModel) -> torch.device:
    """Return where the model takes its tokens."""
    return module_device(model.get_input_embeddings())
