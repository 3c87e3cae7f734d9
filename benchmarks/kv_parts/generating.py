"""Whole generations of a model: stock `generate` on three caches, and the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, MinNewTokensLengthLogitsProcessor

from kv_parts.setting import Options, Record
from kv_parts.timing import compared, interleave
from trimtab.errors import TrimtabError
from trimtab.generation import Engine
from trimtab.generation.stopping import stop_tokens
from trimtab.generation.transformers import Clock, plainly_generating
from trimtab.models.loading import load_model
from trimtab.models.shapes import shapes
from trimtab.models.sources import (
    DType,
    EmbeddedModel,
    Gemma3Model,
    HubModel,
    ModelSource,
    RandomModel,
)
from trimtab.vattention.cache import VirtualCache
from trimtab.vattention.settings import CacheSettings

EMBEDDED = "smollm2-135m"
CHUNK = 512


def generation(options: Options) -> Iterator[Record]:
    """Time greedy generations from random prompts of equal length, each with a new cache.

    `step_mean_us` covers only the decode steps in which all sequences take part.
    """
    texts = Texts(options)
    names = ("virtual", "dynamic", "static", "engine")
    runs: dict[str, Callable[[], Any]] = {name: getattr(texts, name) for name in names}
    times = interleave(runs, options.repeats, options.device, warm_up=1)
    steps = {name: texts.steps[name][-options.repeats :] for name in names}
    for name in names:
        own, expected = texts.tokens[name], texts.tokens["dynamic"]
        step = compared(steps, name, options.seed)
        yield {
            "decoder": name,
            "model": texts.name,
            "batch": options.model_batch,
            "context": options.model_context,
            "new_tokens": options.new_tokens,
            **compared(times, name, options.seed),
            **{f"step_{key}": value for key, value in step.items()},
            "same_tokens_share": float((own == expected).float().mean()),
            "samples_us": times[name],
            "step_samples_us": steps[name],
        }


class Texts:
    """Prompts, and ways to continue them; each records its tokens and the mean time of a step."""

    def __init__(self, options: Options) -> None:
        loaded = load_model(model_config(options))
        self.name = loaded.name
        self._model: Any = loaded.model
        self._tokenizer = loaded.tokenizer
        self._batch, self._new = options.model_batch, options.new_tokens
        self._max_len = options.model_context + options.new_tokens
        self._device = options.device
        self._ends = sorted(stop_tokens(loaded.model, loaded.tokenizer))
        shape = options.model_batch, options.model_context
        special = {*loaded.tokenizer.all_special_ids}  # the padding token is no text
        text = torch.tensor(sorted({*range(self._model.config.vocab_size)} - special))
        drawn = torch.Generator().manual_seed(options.seed)
        places = torch.randint(len(text), shape, generator=drawn)
        self._prompts = text[places].to(options.device)
        # Until the last prompt is prefilled, other sequences may decode a token at every chunk.
        chunks = options.model_batch * -(-options.model_context // CHUNK)
        if options.new_tokens < chunks + 2:
            raise TrimtabError(
                f"--new-tokens {options.new_tokens}: the engine decodes while it prefills; "
                f"expected at least {chunks + 2}, so that some steps include all sequences"
            )
        self.tokens: dict[str, torch.Tensor] = {}
        self.steps: dict[str, list[float]] = {}

    def dynamic(self) -> None:
        cache = DynamicCache(config=self._model.config)
        self._generate("dynamic", past_key_values=cache)

    def static(self) -> None:
        self._generate("static", cache_implementation="static", disable_compile=True)

    def virtual(self) -> None:
        cache = VirtualCache(
            self._model.config, batch=self._batch, max_len=self._max_len,
            dtype=self._model.dtype, device=self._device,
        )  # fmt: skip
        with cache:
            self._generate("virtual", past_key_values=cache)

    def engine(self) -> None:
        def processors(index: int) -> LogitsProcessorList | None:
            if not self._ends:
                return None
            length = self._prompts.shape[1]
            device = str(self._prompts.device)
            return LogitsProcessorList(
                [MinNewTokensLengthLogitsProcessor(length, self._new, self._ends, device=device)]
            )

        sizes = {"slots": self._batch, "max_len": self._max_len}
        cache = CacheSettings(prefill_chunk=CHUNK)
        with Engine(self._model, self._tokenizer, **sizes, cache=cache) as engine:
            completions = engine.generate(
                self._prompts.tolist(), max_new_tokens=self._new, logits_processors=processors
            )
        begun = max(completion.times[0] for completion in completions)
        ended = min(completion.times[-1] for completion in completions)
        steps = {step for completion in completions for step in completion.times}
        self._note("engine", sorted(step for step in steps if begun <= step <= ended))
        self.tokens["engine"] = torch.tensor([completion.tokens for completion in completions])

    @torch.inference_mode()
    def _generate(self, name: str, **cache: Any) -> None:
        clock = Clock()
        plain: Any = plainly_generating(self._model, self._tokenizer)
        sequences = plain.generate(
            self._prompts,
            attention_mask=torch.ones_like(self._prompts),
            do_sample=False,
            min_new_tokens=self._new,
            max_new_tokens=self._new,
            streamer=clock,
            **cache,
        )
        self._note(name, clock.times[1:])
        self.tokens[name] = sequences[:, self._prompts.shape[1] :].cpu()

    def _note(self, name: str, times: list[float]) -> None:
        mean = (times[-1] - times[0]) / (len(times) - 1)
        self.steps.setdefault(name, []).append(round(mean * 1e6, 3))


def model_config(options: Options, dtype: DType = DType.auto) -> ModelSource:
    """Return the source of the model: embedded, a shipped shape, or the hub."""
    common = {"device": options.device, "dtype": dtype}
    for kind in (EmbeddedModel, Gemma3Model):
        if options.model == kind.package:
            return kind(**common)
    if options.model in shapes():
        return RandomModel(**common, config=options.model, seed=options.seed)
    return HubModel(**common, name=options.model, revision=None, device_map=None)
