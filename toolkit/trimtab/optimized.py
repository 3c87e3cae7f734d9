"""A model with a stack of methods on it, to generate with and to hand to other people's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Never, Self, SupportsIndex, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.artifact import Artifact
from trimtab.errors import TrimtabError
from trimtab.generation import Completion, Engine, Sampling, transformers
from trimtab.generation.limits import check_prompts, require_size, token_limits
from trimtab.generation.prompts import Prompts, as_batch, prompt_tokens, stop_strings
from trimtab.generation.sampling import sampling_of
from trimtab.models.changes import Change, changes_of, lock_of
from trimtab.models.facts import longest_text
from trimtab.models.fingerprint import fingerprint
from trimtab.models.state import own_precision, require_evaluation, require_in_memory
from trimtab.stack import AppliedStack, Stack


class Optimized:
    """A model on which methods are at work within a ``with``; made by `trimtab.apply`.

    Calls from several threads wait for each other.

    Attributes
    ----------
    model : PreTrainedModel
        The model that was given, changed in place until the ``with`` ends.
    stack : Stack
    artifacts : dict of str to Artifact
        By the method's name.

    Raises
    ------
    ArtifactError
        On entering, if an artifact belongs to another model.
    MisfitError
        On entering, if the methods do not fit the model or each other.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stack: Stack,
        artifacts: Mapping[str, Artifact],
        fingerprint: str | None = None,
    ) -> None:
        self.model, self.stack, self.artifacts = model, stack, dict(artifacts)
        self.base_tokenizer, self._fingerprint = tokenizer, fingerprint
        self._context: ExitStack | None = None
        self._applied: AppliedStack | None = None
        self._changes: tuple[Change, ...] = ()
        self._made: str | None = None

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(self, *error: Any) -> None:
        self._leave(*error)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise TrimtabError(
            "an Optimized is neither copied nor pickled: it holds a model and its changes; make "
            "another with trimtab.apply, of a copy of the model as it was before"
        )

    @property
    def applied(self) -> AppliedStack:
        """The methods at work.

        Raises
        ------
        RuntimeError
            Outside the ``with``.
        """
        if self._applied is None:
            raise RuntimeError("no method is at work: use this within `with trimtab.apply(...)`")
        return self._applied

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts."""
        return self.applied.tokenizer

    @property
    def output_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of what the model generates."""
        return self.applied.output_tokenizer

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int | Sequence[int] = 64,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        slots: int = 8,
    ) -> list[Completion]:
        """Return what the model continues the prompts with, in their order.

        Our engine generates where the stack has a KV cache or a drafter, `slots` texts at a time;
        transformers' own loop everywhere else, one text after the other.

        Parameters
        ----------
        prompts : sequence of str or of sequence of int, or BatchEncoding
            Texts, token ids of `tokenizer`, or what it makes of several texts, padded or not.
        max_new_tokens : int or sequence of int
            At least 1: for all prompts, or for each.
        sampling : Sampling, optional
            Greedy decoding where None.
        stop : sequence of str
            What ends a text before it.
        slots : int
            The most texts at a time.

        Raises
        ------
        TrimtabError
            If a prompt is empty or does not fit, an argument is out of range, other methods were
            put on the model after these, or it is in training mode.
        """
        require_size("slots", slots)
        with lock_of(self.model), own_precision():
            self._check_in_charge()
            require_evaluation(self.model)
            stop = stop_strings(stop)
            ids = prompt_tokens(self.tokenizer, prompts)
            if self.applied.needs_engine:
                with self.engine(slots=min(slots, max(len(ids), 1))) as engine:
                    return engine.generate(
                        as_batch(ids), max_new_tokens=max_new_tokens, sampling=sampling, stop=stop
                    )
            each = token_limits(max_new_tokens, len(ids))
            room, embedding = longest_text(self.model.config), self.model.get_input_embeddings()
            require_in_memory(embedding)  # other parts may be brought there when they run
            check_prompts(ids, room, len(cast(Tensor, embedding.weight)))
            drawing = sampling_of(sampling)
            return [
                transformers.generate(
                    self.model,
                    self.output_tokenizer,
                    prompt,
                    index,
                    limit,
                    room,
                    drawing,
                    stop,
                )
                for index, (prompt, limit) in enumerate(zip(ids, each, strict=True))
            ]

    def engine(self, *, slots: int, max_len: int | None = None) -> Engine:
        """Return the generation engine with the stack's cache and drafter, to be entered.

        Parameters
        ----------
        slots : int
            Texts at a time.
        max_len : int, optional
            The most tokens of a prompt and its text; what the model has positions for where None.
        """
        return Engine(
            self.model,
            self.tokenizer,
            slots=slots,
            max_len=longest_text(self.model.config) if max_len is None else max_len,
            cache=self.applied.cache,
            drafter=self.applied.drafter,
            output_tokenizer=self.output_tokenizer,
        )

    @contextmanager
    def suspended(self) -> Iterator[PreTrainedModel]:
        """Have the model as it was before the methods within the block.

        Raises
        ------
        TrimtabError
            If other methods were put on the model after these, or what they made of it was edited.
        """
        with lock_of(self.model):
            self._check_in_charge()
            self._check_unedited()
            self._leave(None, None, None)
            try:
                yield self.model
            finally:
                self._enter()

    def _check_in_charge(self) -> None:
        if self.applied and changes_of(self.model) != self._changes:
            raise TrimtabError(
                f"other methods were put on the model after {', '.join(self.stack.names)}: leave "
                "their `with` first"
            )

    def _check_unedited(self) -> None:
        if self._made is not None and fingerprint(self.model) != self._made:
            raise TrimtabError(
                f"the model was edited after {' and '.join(self.stack.names)} was put on it, so "
                "that it has no unmodified model to go back to: edit it first, then calibrate and "
                "apply"
            )

    def _enter(self) -> None:
        with lock_of(self.model):
            if self._context is not None:
                raise RuntimeError("the methods are applied already: enter the context once")
            with ExitStack() as undo:
                applied = undo.enter_context(
                    self.stack.apply(
                        self.model, self.base_tokenizer, self.artifacts, self._fingerprint
                    )
                )
                changed = any(method.changes(self.model) for method in self.stack.methods)
                self._made = fingerprint(self.model) if changed else None
                self._applied, self._changes = applied, changes_of(self.model)
                self._context = undo.pop_all()

    def _leave(self, *error: Any) -> None:
        with lock_of(self.model):
            context, self._context, self._applied = self._context, None, None
            if context is not None:
                context.__exit__(*error)
