"""Several methods together: ordered by what they touch, checked, applied and taken off as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.errors import MisfitError
from trimtab.method import Applied, Method


@dataclass
class AppliedStack:
    """The methods of a stack at work; the empty stack is the unmodified model.

    Attributes
    ----------
    tokenizer, output_tokenizer : PreTrainedTokenizerBase
        Of prompts, and of what the model generates.
    members : list of Applied
    """

    tokenizer: PreTrainedTokenizerBase
    output_tokenizer: PreTrainedTokenizerBase
    members: list[Applied]

    @property
    def kernel(self) -> str:
        """What ran: the methods' kernels, or plain PyTorch where none of them has one."""
        return " + ".join(part.kernel for part in self.members if part.kernel) or "torch"

    @property
    def alternatives(self) -> dict[int, tuple[int, ...]]:
        """Output tokens that stand for several of the unmodified model's, and which."""
        return {token: stood for part in self.members for token, stood in part.alternatives.items()}

    @property
    def engine(self) -> Mapping[str, Any] | None:
        """Settings of the engine that generates, where transformers does not."""
        return next((part.engine for part in self.members if part.engine is not None), None)

    @property
    def drafts(self) -> Any:
        """What proposes tokens for the engine to verify, or None."""
        return next((part.drafts for part in self.members if part.drafts is not None), None)

    def measured(self) -> dict[str, Any]:
        """Return the sections of result.json that the methods fill."""
        return {name: section for part in self.members for name, section in part.measured().items()}

    @contextmanager
    def base_output(self) -> Iterator[None]:
        """Have the model predict the unmodified model's tokens alone within the block."""
        with ExitStack() as members:
            for part in self.members:
                members.enter_context(part.base_output())
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Have every method count what it does within the block."""
        for part in self.members:
            part.recording = True
        try:
            yield
        finally:
            for part in self.members:
                part.recording = False


class Stack:
    """Methods in the order they are applied: vocabulary, then weights, then cache.

    Parameters
    ----------
    methods : iterable of Method
        In any order.

    Raises
    ------
    MisfitError
        If two of them touch the same thing.
    """

    def __init__(self, methods: Iterable[Method]) -> None:
        self.methods = sorted(methods, key=lambda method: method.stage)
        for first, second in zip(self.methods, self.methods[1:], strict=False):
            if first.stage == second.stage:
                raise MisfitError(
                    f"{first.name} and {second.name} both change the model's "
                    f"{first.stage.name}: a stack takes one of them"
                )

    @property
    def names(self) -> list[str]:
        return [method.name for method in self.methods]

    def check(self, model: PreTrainedModel) -> None:
        """Raise `MisfitError` if any method does not fit the model."""
        for method in self.methods:
            method.check(model)

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        artifacts: Mapping[str, Artifact],
    ) -> Iterator[AppliedStack]:
        """Apply every method for the time of the ``with``; undo them in reverse order.

        Parameters
        ----------
        artifacts : mapping
            The artifact of every method that needs one, by the method's name.
        """
        with ExitStack() as undo:
            applied = AppliedStack(tokenizer, tokenizer, [])
            for method in self.methods:
                artifact = artifacts.get(method.name)
                part = undo.enter_context(method.apply(model, applied.tokenizer, artifact))
                applied.members.append(part)
                if part.tokenizer is not applied.tokenizer:
                    applied.output_tokenizer = part.output_tokenizer or part.tokenizer
                    applied.tokenizer = part.tokenizer
            yield applied
