"""What answers requests: transformers in two ways, and the engine with a stack of methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from decode_parts.contenders import Setting

from trimtab.evaluation.generators.continuous import ContinuousServer, quiet
from trimtab.evaluation.generators.engine_server import EngineServer
from trimtab.evaluation.generators.padded import PaddedServer
from trimtab.evaluation.generators.server import Request, Server


@dataclass(frozen=True)
class Contender:
    """One way to answer requests; `note` says what runs it."""

    name: str
    server: Server
    note: str = ""


def contenders(setting: Setting, given: Sequence[Request]) -> Iterator[Contender]:
    """Yield transformers' ways and the engine's; the first is what others are compared with."""
    model, tokenizer = setting.loaded.model, setting.loaded.tokenizer
    padded = "transformers, padded generate"
    for name in (padded, f"{padded}, again"):
        yield Contender(name, PaddedServer(model, tokenizer))
    setting.undo.enter_context(quiet())
    continuous = ContinuousServer(model, given)
    setting.undo.callback(continuous.close)
    yield Contender("transformers, continuous batching", continuous)
    sparsity = f"larosa {setting.options.sparsity:g}"
    yield engine(setting, "vattention", given)
    yield engine(setting, f"{sparsity}, vattention", given, "larosa")
    yield engine(setting, "all, drafting", given, "adaptivocab", "larosa")


def engine(setting: Setting, name: str, given: Sequence[Request], *methods: str) -> Contender:
    """Return the engine on a model with methods."""
    optimized = setting.apply(*methods)
    longest = max(request.tokens for request in given)
    running = setting.undo.enter_context(optimized.engine(slots=len(given), max_len=longest))
    return Contender(name, EngineServer(running), running.decode_step)
