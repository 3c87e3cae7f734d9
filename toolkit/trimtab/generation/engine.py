"""The engine: a model, a virtual KV cache, and as many texts at a time as the cache has slots."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.capabilities import Drafter
from trimtab.errors import TrimtabError
from trimtab.generation.attention import NAME
from trimtab.generation.batch import Batch, OnToken
from trimtab.generation.fit import capacity, check_model, check_prompts, limits
from trimtab.generation.forward import Forward
from trimtab.generation.reading import expected
from trimtab.generation.request import Completion, Request
from trimtab.generation.sampling import Sampler, Sampling
from trimtab.generation.stats import EngineStats
from trimtab.generation.stopping import TextStream, stop_tokens
from trimtab.models.adapter import adapter_for, head_shape, module_device
from trimtab.progress import track
from trimtab.vattention.attention import using_attention
from trimtab.vattention.settings import CacheSettings
from trimtab.vattention.virtual_kv import VirtualKV

Processors = Callable[[int], LogitsProcessorList | None]
Prompt = str | Sequence[int]


class Engine:
    """Generates for many prompts at once, on a KV cache that grows by the page.

    Entering the context makes the cache and has the model use it; leaving it undoes both. A
    finished sequence's slot takes the next prompt at once. Prompts are read in chunks between the
    steps of those that decode. A decode step has one row a slot, whether it is in use or not, so
    that a text does not depend on the others; where the library splits a product between threads,
    which row a sequence has may show in the last bits of its logits. When the budget is reached,
    the youngest sequence is put back, and run again from its prompt later, with the same tokens.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on one device.
    tokenizer : PreTrainedTokenizerBase
        Of prompts.
    slots : int
        Sequences at a time.
    max_len : int
        The most tokens of a prompt and the text behind it.
    cache : CacheSettings, optional
        How keys and values are kept, and prompts read; the defaults where None.
    drafter : Drafter, optional
        Proposes tokens where one sequence decodes alone; the text is as without, up to the
        rounding of a forward pass over several tokens instead of one.
    output_tokenizer : PreTrainedTokenizerBase, optional
        Of generated text; that of prompts where None.

    Attributes
    ----------
    stats : EngineStats

    Raises
    ------
    MisfitError
        If the model is not supported, in training mode, or on several devices.
    TrimtabError
        If a size is out of range for the model, or, on entering, for the cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int,
        max_len: int,
        cache: CacheSettings | None = None,
        drafter: Drafter | None = None,
        output_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        check_model(model, max_len)
        cache = cache or CacheSettings()
        layers = adapter_for(model).decoder_layers(model)
        heads = head_shape(model.config)
        self._model, self._tokenizer = model, tokenizer
        self._output_tokenizer = output_tokenizer or tokenizer
        self._make_cache = partial(
            VirtualKV,
            len(layers),
            slots,
            max_len,
            heads.kv_heads,
            heads.head_dim,
            model.dtype,
            cache.layout,
            cache.page_group,
            device=module_device(layers[0]),
            budget=cache.budget,
        )
        self._cache, self._drafter = cache, drafter
        self._undo = ExitStack()
        self._kv: VirtualKV | None = None
        self._forward: Forward | None = None
        self.stats = EngineStats()

    def __enter__(self) -> Self:
        if self._kv is not None:
            raise RuntimeError("the engine runs already: enter it once")
        with ExitStack() as undo:
            try:
                self._kv = undo.enter_context(self._make_cache())
            except ValueError as error:
                raise TrimtabError(f"no KV cache for this engine: {error}") from error
            undo.callback(self._forget)
            undo.enter_context(using_attention(self._model, NAME))
            self._forward = Forward(self._model, self._kv)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.__exit__(*error)

    @property
    def kv(self) -> VirtualKV:
        """The cache, while the engine runs."""
        if self._kv is None:
            raise RuntimeError("the engine does not run: use it in a `with`")
        return self._kv

    @property
    def capacity(self) -> int:
        """The most tokens one sequence can have: `max_len`, or what the budget holds."""
        return capacity(self.kv.geometry, self.kv.page_bytes, self._cache.budget)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        on_token: OnToken | None = None,
        logits_processors: Processors | None = None,
        progress: bool = False,
    ) -> list[Completion]:
        """Return what the model continues the prompts with, in their order.

        A text ends with a stop token of the model or of the tokenizer, with a stop string, or
        where it has `max_new_tokens` tokens or, with its prompt, `capacity` tokens.

        Parameters
        ----------
        prompts : sequence of str or of sequence of int
            Texts, or token ids.
        max_new_tokens : int or sequence of int
            At least 1: for all prompts, or for each.
        sampling : Sampling, optional
            Greedy where None.
        stop : sequence of str
            What ends a text before it.
        on_token : callable, optional
            Called with the index of the prompt, the token, and the text that is final with it:
            whole characters that can no longer become part of a stop string.
        logits_processors : callable, optional
            Returns transformers' processors for the prompt of an index, or None. They are applied
            to its logits alone, before sampling, and made anew where a sequence is run again.
        progress : bool
            Whether to show a bar on standard error.

        Raises
        ------
        TrimtabError
            If a prompt is empty, cannot fit or has a token that the model does not know, or an
            argument is out of range; nothing has run then.
        KVOutOfMemory
            If the machine itself has no memory left, for one sequence alone.
        """
        kv, forward = self.kv, self._forward
        assert forward is not None
        sampling = sampling or Sampling()
        check_texts(prompts, stop)
        ids = [token_ids(self._tokenizer, prompt) for prompt in prompts]
        room = self.capacity
        embedding: Any = self._model.get_input_embeddings()
        check_prompts(ids, room, kv.geometry.max_len, len(embedding.weight))
        each = limits(max_new_tokens, len(ids))
        ends = stop_tokens(self._model, self._output_tokenizer)
        requests = []
        for index, (prompt, limit) in enumerate(zip(ids, each, strict=True)):

            def sampler(index: int = index) -> Sampler:
                made = logits_processors(index) if logits_processors else None
                return Sampler(sampling, index, forward.device, made)

            stream = TextStream(self._output_tokenizer, stop)
            limit = min(limit, room - len(prompt))
            requests.append(Request(index, prompt, limit, ends, stream, sampler))
        chunk = self._cache.prefill_chunk
        batch = Batch(forward, kv, requests, chunk, self._drafter, on_token, self.stats)
        with closing(batch.run()) as running:
            finished: Iterator[Request] = running
            if progress:
                finished = track(running, "Generating", len(requests))
            for _ in finished:
                pass
        return [request.completion() for request in requests]

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
        """Return what the model expects at every token of a text behind a prompt.

        The text is read, in chunks as prompts are, and not generated.

        Parameters
        ----------
        prompt, text : sequence of int
            Token ids, at least one each.

        Returns
        -------
        Tensor
            Of shape [tokens of the text, vocabulary], in the model's dtype.

        Raises
        ------
        TrimtabError
            If one is empty, or the two do not fit.
        """
        kv, forward = self.kv, self._forward
        assert forward is not None
        tokens, room = len(prompt) + len(text), self.capacity
        if not prompt or not text or tokens > room + 1:
            raise TrimtabError(
                f"a prompt of {len(prompt)} tokens and a text of {len(text)}: expected at least "
                f"one each, and {room + 1} at most, as the last is not read and the KV cache has "
                f"room for {room}; raise max_len or the budget, or shorten them"
            )
        return expected(forward, kv, prompt, text, self._cache.prefill_chunk)

    def _forget(self) -> None:
        self._kv = self._forward = None


def check_texts(prompts: Sequence[Prompt], stop: Sequence[str]) -> None:
    """Refuse one text where several are expected.

    Raises
    ------
    TrimtabError
    """
    if isinstance(prompts, str):
        raise TrimtabError(f"prompts={prompts!r}: expected several; put a single one in a list")
    if isinstance(stop, str) or not all(stop):
        raise TrimtabError(f"stop={stop!r}: expected a sequence of strings, none empty")


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt, special ones included.

    Raises
    ------
    TrimtabError
        If it is neither a text nor token ids.
    """
    if isinstance(prompt, str):
        encoded: list[int] = tokenizer(prompt)["input_ids"]
        return encoded
    try:
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise TrimtabError(f"prompt {prompt!r}: expected a text or token ids") from error
