"""The engine: a model, a virtual KV cache, and as many texts at a time as the cache has slots."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any, Never, Self, SupportsIndex

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.arguments import require_language_model, require_tokenizer, shown
from trimtab.capabilities import Drafter
from trimtab.errors import TrimtabError
from trimtab.generation.attention import NAME
from trimtab.generation.batch import Batch, OnToken
from trimtab.generation.costs import step_costs
from trimtab.generation.drafts import Drafts
from trimtab.generation.executor import Executor
from trimtab.generation.forward import Forward
from trimtab.generation.limits import (
    capacity,
    check_model,
    check_prompts,
    given_texts,
    known_tokens,
    require_callables,
    require_size,
    token_limits,
)
from trimtab.generation.prompts import Prompts, prompt_tokens, stop_strings
from trimtab.generation.request import Completion, Request
from trimtab.generation.sampling import Sampler, Sampling, sampling_of
from trimtab.generation.scoring import text_logits
from trimtab.generation.stats import EngineStats
from trimtab.generation.stopping import Detokenizer, special_tokens, stop_tokens
from trimtab.models.adapter import adapter_for, head_shape, module_device
from trimtab.models.changes import lock_of
from trimtab.models.facts import longest_text
from trimtab.models.state import own_precision, require_evaluation
from trimtab.progress import track
from trimtab.vattention.attention import using_attention
from trimtab.vattention.settings import CacheSettings
from trimtab.vattention.storage import TensorsAlive
from trimtab.vattention.virtual_kv import VirtualKV

Processors = Callable[[int], LogitsProcessorList | None]


class Engine:
    """Generates for many prompts at once, on a KV cache that grows page by page.

    Entering the context creates the cache and has the model use it; leaving it undoes both. The
    slot of a finished sequence takes the next prompt at once. Prompts are prefilled in chunks,
    between the decode steps of other sequences. If the budget is exhausted, the youngest sequence
    is preempted and later recomputed from its prompt, with the same tokens.

    Several threads may call it, and several engines may run on one model: calls for a model wait
    for each other.

    Decode steps run on an executor of the model's decode plan where there is one (see
    `decode_step`). On a CPU every row is then computed as if it were alone; on a GPU a step has the
    next of a few numbers of rows. Where the modules run them, a step has one row per slot, in use
    or not. Short prompts are prefilled in one pass. So what else runs at the time may only show in
    the last bits of a text's logits: where the library's products depend on how many rows they
    have. With `batch_invariant` in the cache's settings, passes and steps are alike.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on one device.
    tokenizer : PreTrainedTokenizerBase
        For prompts.
    slots : int
        Sequences at a time.
    max_len : int
        The most tokens of a prompt and its continuation.
    cache : CacheSettings, optional
        How keys and values are kept, and prompts prefilled; the defaults if None.
    drafter : Drafter, optional
        Proposes tokens; where the modules run decode steps, while a single sequence decodes, and
        not if `batch_invariant`. The text is the same as without, up to the rounding of the
        modules' pass over several tokens instead of one. A draft is as long as pays by what steps
        over more tokens take, which is measured when the engine is entered.
    output_tokenizer : PreTrainedTokenizerBase, optional
        For generated text; the tokenizer of prompts if None.

    Attributes
    ----------
    stats : EngineStats

    Raises
    ------
    MisfitError
        If the model is not supported, in training mode, or on several devices.
    TrimtabError
        If a size is out of range for the model, or, on entering, for the cache; or an argument is
        something else.
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
        require_language_model(model)
        require_tokenizer(tokenizer)
        if output_tokenizer is not None:
            require_tokenizer(output_tokenizer, "output_tokenizer")
        for name, value, kind, expected in (
            ("cache", cache, CacheSettings | None, "a trimtab.VAttention, or None"),
            ("drafter", drafter, Drafter | None, "a trimtab.capabilities.Drafter, or None"),
        ):
            if not isinstance(value, kind):
                raise TrimtabError(f"{name}={shown(value)}: expected {expected}")
        require_size("slots", slots)
        require_size("max_len", max_len)
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
        self._chunk, self._apart = cache.prefill_chunk, cache.batch_invariant
        self._drafter = drafter
        self._undo = ExitStack()
        self._kv: VirtualKV | None = None
        self._forward: Forward | None = None
        self._generating = False
        self.stats = EngineStats()

    def __enter__(self) -> Self:
        with lock_of(self._model), own_precision(), ExitStack() as undo:
            if self._kv is not None:
                raise RuntimeError("the engine is running already: enter it once")
            try:
                self._kv = self._make_cache()
            except ValueError as error:
                raise TrimtabError(f"no KV cache for this engine: {error}") from error
            undo.push(partial(_close, self._kv))
            undo.callback(self._forget)
            undo.enter_context(using_attention(self._model, NAME))
            self._forward = Forward(self._model, self._kv, batch_invariant=self._apart)
            self._drafts(self._kv, self._forward)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        with lock_of(self._model):
            self._check_idle()
            self._undo.__exit__(*error)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise TrimtabError(
            "an Engine is neither copied nor pickled: it holds a model and memory of this process; "
            "make another"
        )

    @property
    def kv(self) -> VirtualKV:
        """The cache, while the engine is running."""
        if self._kv is None:
            raise RuntimeError("the engine is not running: use it in a `with`")
        return self._kv

    @property
    def capacity(self) -> int:
        """The most tokens of one sequence: `max_len`, or fewer if the budget holds fewer."""
        kv = self.kv
        return capacity(kv.geometry, kv.page_bytes, kv.pool.budget)

    @property
    def _executor(self) -> Executor:
        if self._forward is None:
            raise RuntimeError("the engine is not running: use it in a `with`")
        return self._forward.executor

    @property
    def decode_step(self) -> str:
        """What runs decode steps: the executor, or the model's modules and why."""
        return self._executor.name

    @property
    def unread_head_bytes(self) -> int:
        """How many bytes of the head a greedy step leaves unread, less those of its int8 copy."""
        return self._executor.unread_head_bytes

    @property
    def head_copy_bytes(self) -> int:
        """How many bytes the int8 copy of the head has; 0 without one."""
        return self._executor.head_copy_bytes

    @property
    def exact_logits(self) -> float | None:
        """How many logits of the head itself a greedy token has taken so far, in the mean.

        All others were ruled out by the int8 copy. NaN before any; None where the modules run. It
        begins anew when the model changes.
        """
        return self._executor.exact_logits

    @property
    def step_seconds(self) -> dict[str, float]:
        """What the time of decode steps so far went to, by kind of work.

        Empty where that is not known: by the model's modules, and on a GPU. It begins anew when the
        model changes.
        """
        return self._executor.seconds

    @torch.inference_mode()
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        on_token: OnToken | None = None,
        logits_processors: Processors | None = None,
        given: Iterable[Iterable[int]] = (),
        progress: bool = False,
    ) -> list[Completion]:
        """Return the model's continuations of the prompts, in the same order.

        A text ends with a stop token of the model or the tokenizer, before a stop string, or when
        it reaches `max_new_tokens` tokens or, with its prompt, `capacity` tokens; its `finish` says
        which.

        Parameters
        ----------
        prompts : sequence of str or of sequence of int, or BatchEncoding
            Texts, token ids, or what the tokenizer makes of several texts, padded or not.
        max_new_tokens : int or sequence of int
            At least 1: one limit for all prompts, or one for each.
        sampling : Sampling, optional
            Greedy if None.
        stop : sequence of str
            Stop strings, which are not part of the text.
        on_token : callable, optional
            Called with the index of the prompt, the token, and the text that the token makes final:
            whole characters that cannot belong to a stop string.
        logits_processors : callable, optional
            Given the index of a prompt, returns transformers' processors for it, or None. They are
            applied to the logits of this prompt only, before sampling, and requested again when a
            preempted sequence is recomputed.
        given : iterable of iterable of int
            By prompt, tokens that its text goes on with whatever the model chooses, for timing a
            given text; empty if there are none.
        progress : bool
            Whether to show a progress bar on standard error.

        Raises
        ------
        TrimtabError
            Before anything runs, if a prompt is empty, is too long or has a token that the model
            does not know, if an argument is out of range, if the model is no longer as it was when
            the engine was entered, or if this call comes from `on_token` or a processor of another.
        KVOutOfMemory
            If the machine has no memory left, even for a single sequence.
        """
        with self._call() as (kv, forward):
            sampling = sampling_of(sampling)
            ids = prompt_tokens(self._tokenizer, prompts)
            stop = stop_strings(stop)
            require_callables(on_token=on_token, logits_processors=logits_processors)
            room = self.capacity
            embedding: Any = self._model.get_input_embeddings()
            check_prompts(ids, room, len(embedding.weight), *self._limit())
            each = token_limits(max_new_tokens, len(ids))
            ends = stop_tokens(self._model, self._output_tokenizer)
            texts = given_texts(given, ids, len(embedding.weight))
            requests = []
            for index, (prompt, limit, text) in enumerate(zip(ids, each, texts, strict=True)):

                def sampler(index: int = index) -> Sampler:
                    made = logits_processors(index) if logits_processors else None
                    return Sampler(sampling, index, forward.device, made)

                detokenizer = Detokenizer(self._output_tokenizer, stop)
                left = room - len(prompt)
                requests.append(
                    Request(index, prompt, limit, ends, detokenizer, sampler, left, text)
                )
            batch = Batch(
                forward,
                kv,
                requests,
                self._chunk,
                apart=self._apart,
                drafts=self._drafts(kv, forward),
                on_token=on_token,
                stats=self.stats,
            )
            with closing(batch.run()) as running:
                finished: Iterator[Request] = running
                if progress:
                    finished = track(running, "Generating", len(requests))
                for _ in finished:
                    pass
            return [request.completion() for request in requests]

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
        """Return the logits of every token of a given text after a prompt.

        The text is processed in chunks, like a prompt; nothing is generated.

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
            If one is empty or not of the model's tokens, or both together are too long.
        """
        with self._call() as (kv, forward):
            embedding: Any = self._model.get_input_embeddings()
            prompt = known_tokens(prompt, len(embedding.weight), "prompt")
            text = known_tokens(text, len(embedding.weight), "text")
            room = self.capacity + 1  # the last token of the text is not an input
            if not prompt or not text or len(prompt) + len(text) > room:
                source, fix = self._limit()
                raise TrimtabError(
                    f"a prompt of {len(prompt)} tokens and a text of {len(text)}: expected at "
                    f"least one each, and {room} at most in all, by {source}; {fix}shorten them"
                )
            return text_logits(forward, kv, prompt, text, self._chunk)

    def _drafts(self, kv: VirtualKV, forward: Forward) -> Drafts | None:
        """Return what drafts, if anything does, by costs measured once."""
        if self._drafter is None or self.capacity < 1:  # without room every prompt is refused
            return None
        costs = step_costs(self._model, forward, kv, self.capacity)
        self.stats.step_costs = list(costs.relative)
        self.stats.step_costs_measured = costs.measured
        self.stats.step_costs_seconds = costs.seconds
        return Drafts(self._drafter, costs, special_tokens(self._model, self._output_tokenizer))

    @contextmanager
    def _call(self) -> Iterator[tuple[VirtualKV, Forward]]:
        """Have the model and the cache to oneself, as they were when the engine was entered."""
        with lock_of(self._model), own_precision():
            kv, forward = self.kv, self._forward
            assert forward is not None
            self._check_idle()
            forward.require_same_methods()
            require_evaluation(self._model)
            forward.require_fitting_cache()
            self._generating = True
            try:
                forward.refresh()
                yield kv, forward
            finally:
                self._generating = False

    def _limit(self) -> tuple[str, str]:
        """Return what sets `capacity`, and what to do about it besides shortening texts."""
        if self.capacity < self.kv.geometry.max_len:
            return "the budget of the KV cache", "raise the budget, or "
        if self.capacity < longest_text(self._model.config):
            return "max_len", "raise max_len, or "
        return "the model's positions", ""

    def _check_idle(self) -> None:
        if self._generating:
            raise TrimtabError(
                "the engine is in the middle of a call: use it after that, and not from on_token "
                "or from a logits processor"
            )

    def _forget(self) -> None:
        if self._forward is not None:
            self._forward.close()
        self._kv = self._forward = None


def _close(kv: VirtualKV, *error: Any) -> None:
    """Close a cache, or leave it to whoever still holds its tensors: texts are not lost for it."""
    try:
        kv.__exit__(*error)
    except TensorsAlive as refusal:
        warnings.warn(
            f"the engine's KV cache takes memory until its tensors are dropped: {refusal}",
            RuntimeWarning,
            stacklevel=2,
        )
