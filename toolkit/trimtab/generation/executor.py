"""What runs an engine's decode steps: an executor of the model's decode plan, or its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import MisfitError
from trimtab.generation.plan import Observed, decode_plan
from trimtab.generation.steps import ExtendStep, Step
from trimtab.models.decode_parts import HasSiteInput, require_known_code
from trimtab.vattention.virtual_kv import VirtualKV
from trimtab_kernels.decode_step import dispatch
from trimtab_kernels.decode_step.dispatch import PlanExecutor

MOST_ROWS = 16
"""The most tokens that an executor takes at a time; the modules take longer given texts."""

PROBE = 8  # tokens by which an executor is compared with the modules
# How far its logits may be from theirs, over the spread of theirs, for every token. Where a
# selection may decide near-ties in another way, or the modules round after every operation, half of
# the tokens are to be close enough; both together make 0.4 on some processors.
CLOSE, CLOSE_ENOUGH = 1e-3, 0.5

Run = Callable[[Tensor, Tensor, Step, int | Tensor], Tensor]


@dataclass(frozen=True)
class Executor:
    """Where decode steps run, and drafts are verified.

    Parameters
    ----------
    name : str
        What reports call it, or why the modules run instead.
    of_plan : PlanExecutor or None
        Runs the model's decode plan; None where the modules run.
    """

    name: str
    of_plan: PlanExecutor | None = None

    def step(self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Do what `trimtab_kernels.decode_step.reference` does, for any number of tokens.

        Those of one slot must fit into one part, `MOST_ROWS`.
        """
        assert self.of_plan is not None
        rows = torch.tensor([tokens, slots, positions])
        return torch.cat([self.of_plan.step(*part) for part in rows.split(MOST_ROWS, dim=1)])

    @property
    def unread_head_bytes(self) -> int:
        """See `PlanExecutor.unread_head_bytes`; 0 where the modules run."""
        return 0 if self.of_plan is None else self.of_plan.unread_head_bytes

    @property
    def head_copy_bytes(self) -> int:
        """See `PlanExecutor.head_copy_bytes`; 0 where the modules run."""
        return 0 if self.of_plan is None else self.of_plan.head_copy_bytes

    @property
    def exact_logits(self) -> float | None:
        """See `PlanExecutor.exact_logits`; None where the modules run."""
        return None if self.of_plan is None else self.of_plan.exact_logits

    @property
    def seconds(self) -> dict[str, float]:
        """See `PlanExecutor.seconds`; empty where the modules run."""
        return {} if self.of_plan is None else self.of_plan.seconds

    def choose(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int]
    ) -> list[int]:
        """Return the argmax of what `step` does, by row."""
        assert self.of_plan is not None
        rows = torch.tensor([tokens, slots, positions])
        parts = [self.of_plan.choose(*part) for part in rows.split(MOST_ROWS, dim=1)]
        found: list[int] = torch.cat(parts).tolist()
        return found


def executor_for(
    model: PreTrainedModel, kv: VirtualKV, run: Run, *, batch_invariant: bool
) -> Executor:
    """Return the executor for a model as it is now, with whatever methods have made of it.

    Parameters
    ----------
    model : PreTrainedModel
        Set to use the engine's attention function.
    kv : VirtualKV
    run : callable
        Runs the model's modules, given tokens and positions [1, tokens], a step, and how many
        tokens to return logits of.
    batch_invariant : bool
        Whether a row is to have the same bits whatever rows are beside it.
    """
    reason = dispatch.unavailable(model.dtype, model.device)
    if reason is None:
        try:
            executor = _checked(model, kv, run, batch_invariant=batch_invariant)
        except (MisfitError, ValueError) as error:
            reason = str(error)
        else:
            greedy = "; greedy tokens by an int8 copy of the head"
            name = dispatch.describe(model.dtype, model.device)
            return Executor(name + greedy * executor.has_quantized_head, executor)
    return Executor(f"decode step by the model's modules: {reason}")


@torch.inference_mode()
def _checked(
    model: PreTrainedModel, kv: VirtualKV, run: Run, *, batch_invariant: bool
) -> PlanExecutor:
    """Return an executor that computes what the modules compute of a few tokens.

    Raises
    ------
    MisfitError
        If there is no plan of the model, or it is not what the modules do.
    ValueError
        If the executor cannot read the model's tensors.
    """
    require_known_code(model)  # before a pass that the user's hooks would see
    geometry = kv.geometry
    count = min(PROBE, geometry.max_len)
    shape = 1, count, geometry.kv_heads, geometry.head_dim
    make = partial(torch.zeros, shape, dtype=model.dtype, device=model.device)
    keys, values = ([make() for _ in kv.keys] for _ in range(2))
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    positions = torch.arange(count)
    tokens = positions * len(embedding) // count
    observed = Observed(ExtendStep(keys, values, 0, 0, count, prompt=False))
    ids, places = (one[None].to(model.device) for one in (tokens, positions))
    with uncounted(model), observed.watching(model):
        expected = run(ids, places, observed, count)[0].float()
    plan = decode_plan(model, observed, geometry.max_len)
    make_executor = partial(dispatch.executor, plan, batch_invariant=batch_invariant)
    rows = torch.stack([tokens, torch.zeros_like(tokens), positions])
    with uncounted(model):
        probe = make_executor(keys, values)
        # The last token alone, as one row may run on other kernels than several.
        parts = rows.split(max(1, count - 1), dim=1)
        found = torch.cat([probe.step(*part) for part in parts]).float()
    loose = model.dtype != torch.float32 or any(one.mlp_input.selection for one in plan.layers)
    differences = _differences(found, expected)
    difference = float(differences.median() if loose else differences.max())
    if difference > (CLOSE_ENOUGH if loose else CLOSE):
        raise MisfitError(f"its decode plan differs from it by {difference:.1g} of its logits")
    return make_executor(kv.keys, kv.values)


def _differences(found: Tensor, expected: Tensor) -> Tensor:
    """Return how far logits are from those expected, over the spread of these, by token.

    Infinite where other logits are finite than those expected to be.
    """
    finite = expected.isfinite()
    elsewhere = (found.isfinite() != finite).any(-1)
    found, expected = (torch.where(finite, one, 0.0) for one in (found, expected))
    distance = (found - expected).norm(dim=-1)
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    relative = torch.where(distance > 0, distance / spread, 0.0)
    return torch.where(elsewhere, torch.inf, relative)


@contextmanager
def uncounted(model: PreTrainedModel) -> Iterator[None]:
    """Have nothing count what runs within the block."""
    sites = [module.site_input() for module in model.modules() if isinstance(module, HasSiteInput)]
    counts = [site.selection.counts for site in sites if site.selection is not None]
    before = [None if one is None else one.clone() for one in counts]
    try:
        yield
    finally:
        for one, count in zip(counts, before, strict=True):
            if one is not None and count is not None:
                one.copy_(count)
