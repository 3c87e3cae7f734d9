"""Several methods together: ordered, checked, applied and undone as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.at_work import overlap
from trimtab.capabilities import (
    ChangesVocabulary,
    Drafter,
    Measures,
    ProposesDrafts,
    ProvidesCache,
    RunsKernel,
    SkipsBytes,
)
from trimtab.errors import MisfitError
from trimtab.method import Method
from trimtab.models.changes import lock_of
from trimtab.models.dtypes import require_dtypes_that_work
from trimtab.models.fingerprint import fingerprint
from trimtab.models.state import inferring
from trimtab.vattention.settings import CacheSettings


@dataclass
class AppliedStack:
    """The methods of a stack at work; the empty stack is the unmodified model.

    Attributes
    ----------
    tokenizer, output_tokenizer : PreTrainedTokenizerBase
        Of prompts, and of what the model generates.
    members : list of object
        What every method yielded; see `trimtab.capabilities`.
    """

    tokenizer: PreTrainedTokenizerBase
    output_tokenizer: PreTrainedTokenizerBase
    members: list[object] = field(default_factory=list)

    def add(self, part: object) -> None:
        """Take in what a method applied on top of the others yielded."""
        self.members.append(part)
        if isinstance(part, ChangesVocabulary):
            self.tokenizer, self.output_tokenizer = part.tokenizer, part.output_tokenizer

    @property
    def kernel(self) -> str:
        """What ran: the methods' kernels, or plain PyTorch where none of them has one."""
        return " + ".join(p.kernel for p in self.members if isinstance(p, RunsKernel)) or "torch"

    @property
    def ngram_tokens(self) -> dict[int, tuple[int, ...]]:
        """Output tokens that stand for several of the unmodified model's, and which."""
        changes = (part for part in self.members if isinstance(part, ChangesVocabulary))
        return {token: tokens for part in changes for token, tokens in part.ngram_tokens.items()}

    @property
    def cache(self) -> CacheSettings | None:
        """Settings of the generation engine's KV cache, where a method provides one."""
        return next((p.cache for p in self.members if isinstance(p, ProvidesCache)), None)

    @property
    def drafter(self) -> Drafter | None:
        """What proposes tokens for the engine to verify, where a method does."""
        return next((p.drafter for p in self.members if isinstance(p, ProposesDrafts)), None)

    @property
    def needs_engine(self) -> bool:
        """Whether our engine has to generate: transformers' loop has neither pages nor drafts."""
        return self.cache is not None or self.drafter is not None

    def measured(self) -> dict[str, Any]:
        """Return the sections of result.json that the methods fill."""
        parts = (part for part in self.members if isinstance(part, Measures))
        return {name: section for part in parts for name, section in part.measured().items()}

    def extra_step_bytes(self) -> int:
        """Return the bytes a decode step reads beyond the parameters, less those it skips."""
        return sum(p.extra_step_bytes() for p in self.members if isinstance(p, SkipsBytes))

    @contextmanager
    def base_output(self) -> Iterator[None]:
        """Have the model predict the unmodified model's tokens alone within the block."""
        with ExitStack() as members:
            for part in self.members:
                if isinstance(part, ChangesVocabulary):
                    members.enter_context(part.base_output())
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Have every method count what it reads within the block."""
        with ExitStack() as members:
            for part in self.members:
                if isinstance(part, SkipsBytes):
                    members.enter_context(part.recording())
            yield


class Stack:
    """Methods in the order they are applied: vocabulary, then weights, then cache.

    Parameters
    ----------
    methods : iterable of Method
        In any order; those of one stage are applied in the order given.

    Raises
    ------
    MisfitError
        If a method is there twice.
    """

    def __init__(self, methods: Iterable[Method]) -> None:
        self.methods = sorted(methods, key=lambda method: method.stage)
        for name in self.names:
            if self.names.count(name) > 1:
                raise MisfitError(f"{name} is in the stack twice: name it once")

    @property
    def names(self) -> list[str]:
        return [method.name for method in self.methods]

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` if a method does not fit the model, or two of them each other.

        So it is for a model that cannot run, see `require_dtypes_that_work`.
        """
        for method in self.methods:
            method.check(model)
        for first, second in combinations(self.methods, 2):
            if shared := overlap(first.claims(model), second.claims(model)):
                raise MisfitError(
                    f"{first.name} and {second.name} both change the model's {shared}: a stack "
                    "takes one of them"
                )
        require_dtypes_that_work(model)

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifacts: Mapping[str, Artifact],
        known: str | None = None,
    ) -> Iterator[AppliedStack]:
        """Apply every method for the time of the ``with``; undo them in reverse order.

        Other changes made to the model in the meantime are undone first, see
        `trimtab.models.changes`.

        Parameters
        ----------
        artifacts : mapping
            The artifact of every method that needs one, by the method's name.
        known : str, optional
            The model's fingerprint, where the caller has it: taking it reads all weights.

        Raises
        ------
        ArtifactError
            If an artifact belongs to another model than the methods before it make.
        MisfitError
            If the methods do not fit the model, each other or those at work on it already.
        """
        with ExitStack() as undo:
            with lock_of(model):
                self.check(model)
                undo.enter_context(inferring(model))
                applied = AppliedStack(tokenizer, tokenizer)
                for method in self.methods:
                    artifact = artifacts.get(method.name)
                    if artifact is not None:
                        known = known or fingerprint(model)
                    part = method.apply(model, applied.tokenizer, artifact, known=known)
                    applied.add(undo.enter_context(part))
                    if method.changes(model):
                        known = None
            yield applied
