"""What is compared: transformers, llama.cpp, and the engine with a stack of methods."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from texts import python_docs
from transformers import CompileConfig, PreTrainedModel, PreTrainedTokenizerBase

import trimtab
from decode_parts import llama_cpp
from decode_parts.backing import collapsed, in_small_pages
from decode_parts.continuation import Continuation, MissingError
from trimtab.adaptivocab.settings import Mode
from trimtab.artifact import Artifact
from trimtab.backing import Backing, pack
from trimtab.calibration import artifacts_for
from trimtab.evaluation.memory import copied, step_bytes, twin
from trimtab.evaluation.work import spent
from trimtab.generation.transformers import Clock, plainly_generating
from trimtab.larosa import Allocation, Basis, LaRoSA, Selection, Transforms
from trimtab.method import Method
from trimtab.models.facts import CacheShape
from trimtab.models.loading import LoadedModel
from trimtab.optimized import Optimized
from trimtab.stack import Stack

Run = Callable[[list[int]], Continuation]
# On random weights no direction counts more than another: the least that a calibration can look at,
# and a transform at every site, so that no cost is left out.
ON_RANDOM_WEIGHTS: dict[str, Any] = {
    "basis": Basis.pca, "transforms": Transforms.all, "allocation": Allocation.uniform,
    "selection": Selection.topk, "tokens": 512,
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One way to continue a prompt.

    Parameters
    ----------
    name : str
    run : callable
        Continues a prompt, given as token ids.
    weight_bytes : callable
        Returns the bytes of weights that a step reads, once it has run while `recording`.
    token_bytes : int
        Bytes of a token's keys and values.
    note : str
        What runs its decode steps.
    recording : callable
        Returns a context within which is counted what is read.
    exact_logits : callable
        Returns how many logits of the head itself a token took in the mean, where an int8 copy of
        it ruled out the others.
    """

    name: str
    run: Run
    weight_bytes: Callable[[], int]
    token_bytes: int
    note: str = ""
    recording: Callable[[], AbstractContextManager[Any]] = nullcontext
    exact_logits: Callable[[], float | None] = lambda: None


@dataclass
class Setting:
    """What the contenders share.

    Parameters
    ----------
    loaded : LoadedModel
    options : Namespace
        Of the command line.
    prompt : list of int
        To try a contender with.
    artifacts : mapping of str to Artifact
        Of all methods, by their names.
    undo : ExitStack
        Where contenders leave what has to be closed.
    """

    loaded: LoadedModel
    options: Namespace
    prompt: list[int]
    artifacts: dict[str, Artifact]
    undo: ExitStack
    shape: CacheShape = field(init=False)

    def __post_init__(self) -> None:
        self.shape = CacheShape.of(self.loaded.model.config)

    @property
    def token_bytes(self) -> int:
        return self.shape.token_bytes(self.loaded.model.dtype)

    def apply(
        self, *methods: str, cache: bool = True, model: PreTrainedModel | None = None
    ) -> Optimized:
        """Return the model with other methods on it, and a KV cache where one is wanted.

        A copy, if there are others, which may take weights out of memory; else with the weights of
        `model`, or those that transformers has, in the same pages.
        """
        one, chosen = self.loaded, [self.artifacts[name] for name in methods]
        optimized = trimtab.apply(
            copied(one.model) if methods else twin(model or one.model),
            one.tokenizer,
            [*chosen, *([trimtab.VAttention()] if cache else [])],
            fingerprint=one.fingerprint,
        )
        applied = self.undo.enter_context(optimized)
        if methods and self.options.memory is Backing.huge:
            pack(applied.model)
        return applied


def calibrated(loaded: LoadedModel, options: Namespace, *others: Method) -> dict[str, Artifact]:
    """Return the artifacts of LaRoSA and other methods; what is missing is calibrated first."""
    changes = ON_RANDOM_WEIGHTS if loaded.random_weights else {}
    larosa = LaRoSA(sparsity=options.sparsity, **changes)
    stack = Stack([larosa, *others])
    return artifacts_for(stack, loaded, python_docs(), options.artifacts, make=True)


def artifacts(loaded: LoadedModel, options: Namespace) -> dict[str, Artifact]:
    return calibrated(loaded, options, trimtab.AdaptiVocab(mode=Mode.draft))


@contextmanager
def endless(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Have a tokenizer end no text: then nobody needs a processor of logits to go on."""
    token, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        yield
    finally:
        tokenizer.eos_token = token


def eager(setting: Setting) -> Iterator[Contender]:
    yield _stock(setting, "transformers, eager", setting.loaded.model)


def again(setting: Setting) -> Iterator[Contender]:
    yield _stock(setting, "transformers, eager, again", setting.loaded.model)


def small_pages(setting: Setting) -> Iterator[Contender]:
    """Yield the controls of what pages do: the same model with its weights in ordinary ones."""
    if setting.options.memory is not Backing.huge:
        raise MissingError("all weights are in ordinary pages")
    model = in_small_pages(setting.loaded.model)
    yield _stock(setting, "transformers, eager, 4 KB pages", model)
    yield _engine(setting, "vattention, 4 KB pages", model=model)


def compiled(setting: Setting) -> Iterator[Contender]:
    """Yield `generate` with a static cache, whose decode steps are compiled."""
    config = CompileConfig(mode="default")
    config._compile_all_devices = True  # transformers compiles on a GPU alone by itself
    one = _stock(
        setting,
        "transformers, static cache, torch.compile",
        twin(setting.loaded.model),
        cache_implementation="static",
        compile_config=config,
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        one.run(setting.prompt)
    except Exception as error:  # of many types, from the compiler
        raise MissingError(str(error).partition("\n")[0]) from error
    if not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        raise MissingError("transformers did not compile anything")
    yield one


def llama(setting: Setting) -> Iterator[Contender]:
    """Yield llama.cpp with weights of the same type, and of the one like it."""
    llama_cpp.require_available(setting.options.model)
    options = setting.options
    dtype = str(setting.loaded.model.dtype).removeprefix("torch.")
    for kind in llama_cpp.WITH[dtype]:
        huge = options.memory is Backing.huge
        with tempfile.TemporaryDirectory() as folder, collapsed() if huge else nullcontext():
            sizes = options.context, options.new_tokens
            run = llama_cpp.LlamaCpp(options.model, kind, Path(folder), *sizes)
        # float16 or bfloat16 beside bfloat16: keys and values are as large in either.
        size = run.weight_bytes
        yield Contender(f"llama.cpp, {kind}", run, lambda size=size: size, setting.token_bytes)


def vattention(setting: Setting) -> Iterator[Contender]:
    yield _engine(setting, "vattention")


def larosa(setting: Setting) -> Iterator[Contender]:
    yield _engine(setting, f"larosa {setting.options.sparsity:g}, vattention", "larosa")


def everything(setting: Setting) -> Iterator[Contender]:
    yield _engine(setting, "all, drafting", "adaptivocab", "larosa")


BUILDERS: dict[str, Callable[[Setting], Iterator[Contender]]] = {
    "eager": eager,
    "again": again,
    "small-pages": small_pages,
    "compiled": compiled,
    "llama.cpp": llama,
    "vattention": vattention,
    "larosa": larosa,
    "all": everything,
}


def contenders(setting: Setting, keys: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Return those that run here, and why the others do not, by their keys."""
    found: list[Contender] = []
    missing: dict[str, str] = {}
    for key in keys:
        try:
            found += BUILDERS[key](setting)
        except MissingError as reason:
            missing[key] = str(reason)
    return found, missing


def _stock(setting: Setting, name: str, model: PreTrainedModel, **options: Any) -> Contender:
    """Return transformers' `generate`."""
    tokenizer = setting.loaded.tokenizer
    generate: Any = plainly_generating(model, tokenizer, endless=True).generate

    def run(ids: list[int]) -> Continuation:
        clock, prompt = Clock(), torch.tensor([ids])
        output = generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=setting.options.new_tokens,
            streamer=clock,
            **options,
        )
        text = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        return Continuation.of(clock.times[1:], text)

    return Contender(name, run, lambda: step_bytes(model), setting.token_bytes)


def _engine(
    setting: Setting, name: str, *methods: str, model: PreTrainedModel | None = None
) -> Contender:
    """Return the engine on a model with methods."""
    optimized, options = setting.apply(*methods, model=model), setting.options
    longest = options.context + options.new_tokens
    engine = setting.undo.enter_context(optimized.engine(slots=1, max_len=longest))

    def run(ids: list[int]) -> Continuation:
        before = engine.step_seconds
        (completion,) = engine.generate([ids], max_new_tokens=options.new_tokens)
        work = spent(before, engine.step_seconds)
        return Continuation.of(completion.times, completion.text, work)

    def weight_bytes() -> int:
        read = step_bytes(optimized.model) + optimized.applied.extra_step_bytes()
        return read - engine.unread_head_bytes

    return Contender(
        name,
        run,
        weight_bytes,
        setting.token_bytes,
        engine.decode_step,
        optimized.applied.recording,
        lambda: engine.exact_logits if engine.head_copy_bytes else None,
    )
