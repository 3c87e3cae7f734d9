"""Candidates compared by the likelihood of held-out text, all at the same sparsity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab import shards
from trimtab.corpus import Split
from trimtab.errors import MisfitError
from trimtab.larosa.account import AppliedLaRoSA
from trimtab.larosa.apply import sparsified
from trimtab.larosa.auto import chosen, told
from trimtab.larosa.plan import Plan
from trimtab.larosa.selection import Selectors
from trimtab.larosa.settings import LaRoSASettings, Prefill
from trimtab.method import Calibration
from trimtab.models.adapter import module_device, positions_of
from trimtab.models.predictions import require_finite
from trimtab.progress import say
from trimtab.resampling import rate_difference

TIE = 1e-5  # of a text's nats: what rounding may change in them


@dataclass(frozen=True)
class Made:
    """What an artifact holds of settings that leave nothing to choose."""

    settings: LaRoSASettings
    plan: Plan
    tensors: dict[str, Tensor]
    statistics: dict[str, Any]

    def calibration(self) -> Calibration:
        return Calibration(self.tensors, {"plan": self.plan.to_json()}, self.statistics)


def best(
    model: PreTrainedModel,
    candidates: Sequence[LaRoSASettings],
    make: Callable[[LaRoSASettings], Made],
    windows: Tensor,
    split: Split,
) -> Calibration:
    """Return the calibration of the candidate under which a text is likeliest, and all figures.

    Of candidates that differ by no more than rounding it is the first.

    Parameters
    ----------
    windows : Tensor
        The text's token ids, int64 of shape [windows, length]: at least two windows.
    split : Split
        Where it is from.

    Raises
    ------
    MisfitError
        If no candidate can save the bytes that are asked for.
    """
    if split is not Split.validation:
        say(f"Too little validation text: candidates are compared on the {split.value} text")
    dense, tokens = _nats(model, windows), [windows.shape[1] - 1.0] * len(windows)
    rows: list[dict[str, Any]] = []
    found: list[tuple[float, int, Made]] = []
    misfits: list[MisfitError] = []
    for number, settings in enumerate(candidates):
        row = {**chosen(settings), "excess": None, "bytes_fraction": None, "reason": None}
        rows.append({**row, "chosen": False})
        try:
            made = make(settings)
        except MisfitError as error:
            misfits.append(error)
            rows[-1]["reason"] = str(error)
            say(f"{told(rows[-1])}: {error}")
            continue
        nats, share = _when_sparse(model, made, windows)
        excess = rate_difference(dense, nats, tokens, seed=0)
        rows[-1] |= {"excess": excess, "bytes_fraction": share}
        say(
            f"{told(rows[-1])}: {excess['estimate']:+.4f} [{excess['low']:+.4f}, "
            f"{excess['high']:+.4f}] nats a token over dense, {share:.3f} of the bytes"
        )
        # At once, so that no more than two candidates' tensors are in memory.
        if not found or sum(nats) < (1 - TIE) * found[0][0]:
            found = [(sum(nats), number, made)]
    if not found:
        raise misfits[0]
    [(_, number, made)] = found
    rows[number]["chosen"] = True
    say(f"Chosen: {told(rows[number])}")
    calibration = made.calibration()
    calibration.parameters["chosen"] = chosen(made.settings)
    calibration.statistics |= {
        "candidates": rows,
        "dense_nats_per_token": sum(dense) / sum(tokens),
        "compared": split.value,
        "compared_tokens": windows.numel(),
    }
    return calibration


def _when_sparse(model: PreTrainedModel, made: Made, windows: Tensor) -> tuple[list[float], float]:
    """Return the nats of every window, and the share of the bytes that a token needed.

    Every token but the dense prefix is sparse, as those are that a model generates.
    """
    settings = replace(made.settings, prefill=Prefill.sparse)
    selectors = Selectors(made.plan, settings)
    with (
        sparsified(model, made.plan, made.tensors, selectors.selector) as sparse,
        selectors.following(model),
    ):
        applied = AppliedLaRoSA(sparse, selectors.made, selectors.recorder, settings.sparsity)
        with applied.recording():
            nats = _nats(model, windows)
        for part in selectors.made:
            part.recorded = shards.summed(part.recorded)
        return nats, applied.measured()["sparsity"]["bytes_fraction"]


@torch.inference_mode()
def _nats(model: PreTrainedModel, windows: Tensor) -> list[float]:
    """Return what the tokens of every window cost, but for the first, given those before."""
    run: Any = model
    device = module_device(model.get_input_embeddings())

    def score(window: Tensor) -> dict[str, Tensor]:
        ids = window[None].to(device)
        found = run(input_ids=ids, use_cache=False, **positions_of(model, ids))
        logits = found.logits[0, :-1].float()
        require_finite(model, logits)
        targets = window[1:].to(logits.device)
        nats = nn.functional.cross_entropy(logits, targets, reduction="none")
        return {"nats": nats.double().sum()}

    return [float(one["nats"]) for one in shards.each([*windows], score, "Likelihood")]
