"""New rows fitted by gradient. Only these rows move: every other weight stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from trimtab.adaptivocab.rows.extended import NewRows, extended_head
from trimtab.adaptivocab.rows.layers import outputs_of
from trimtab.adaptivocab.rows.passages import Passage, with_start
from trimtab.adaptivocab.rows.scoring import HiddenStates, logits_of
from trimtab.adaptivocab.rows.targets import DistillationTargets
from trimtab.models.adapter import adapter_for, module_device, positions_of
from trimtab.models.gradients import loss_gradients, repeatable
from trimtab.progress import track

MATCHED_LAYERS = 4
MATCHING_EPOCHS = 3
DISTILLING_EPOCHS = 2
STEP = 0.015  # of Adam, over the root mean square of the matrix's entries
MOMENTA = (0.9, 0.99)


def match_hidden_states(
    model: PreTrainedModel, rows: Tensor, passages: Sequence[Passage], start: int | None
) -> Tensor:
    """Return input rows with which hidden states come closest to the base model's.

    Minimises, by gradient, the squared distance over the base's squared norm between what layer
    `MATCHED_LAYERS` makes of merged tokens and what it makes of the last base token of each.

    Parameters
    ----------
    rows : Tensor
        Rows to begin with, of shape [n-grams, width].
    """
    layers = adapter_for(model).decoder_layers(model)
    layer = layers[min(MATCHED_LAYERS, len(layers)) - 1]
    embedding: Any = model.get_input_embeddings()

    def hidden(ids: Tensor, weight: Tensor) -> Tensor:
        weights = {_weight_name(model, embedding): weight}
        (output,) = outputs_of([layer], lambda: _run(model, weights, ids, start))
        return output[0, -len(ids) :]

    with torch.no_grad():
        wanted = [hidden(part.base, embedding.weight)[part.ends - 1] for part in passages]

    def loss(number: int, new: Tensor) -> Tensor:
        found = hidden(
            passages[number].merged, torch.cat([embedding.weight, new.to(embedding.weight)])
        )
        distance = (found - wanted[number]).float().square().sum(-1)
        return (distance / wanted[number].float().square().sum(-1)).mean()

    (matched,) = _minimise(
        loss, [rows], [embedding.weight], len(passages), MATCHING_EPOCHS, "Matching hidden states"
    )
    return matched


def distill(
    model: PreTrainedModel,
    rows: NewRows,
    passages: Sequence[Passage],
    states: Sequence[HiddenStates],
    targets: DistillationTargets,
    start: int | None,
) -> NewRows:
    """Return rows with which the extended model predicts what the base model would.

    Minimises, by gradient, the cross-entropy to the base model's distribution over base tokens,
    with the probabilities of first tokens divided as `targets` says. All rows of `rows` move, and
    nothing else.

    Parameters
    ----------
    states : sequence of HiddenStates
        The base model's, over the passages' base tokens.
    """
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    names = [_weight_name(model, module) for module in (embedding, head)]
    firsts = targets.trie.firsts.to(head.weight.device)
    begins = [0, *torch.tensor([len(part.merged) for part in passages]).cumsum(0).tolist()]

    def loss(number: int, new_input: Tensor, new_head: Tensor, changed: Tensor) -> Tensor:
        passage = passages[number]
        with torch.no_grad():
            base = logits_of(model, states[number].hidden[passage.starts]).softmax(-1)
            shares = targets.dense(begins[number], begins[number + 1]).to(base.device)
            base[:, firsts] = shares[:, -len(firsts) :]
            wanted = torch.cat([base, shares[:, : -len(firsts)]], 1)
        current = NewRows(new_input, new_head, rows.changed, changed)
        weights = dict(
            zip(
                names,
                (
                    torch.cat([embedding.weight, new_input.to(embedding.weight)]),
                    extended_head(head.weight, current),
                ),
                strict=True,
            )
        )
        logits = _run(model, weights, passage.merged, start).logits[
            0, -len(passage.merged) - 1 : -1
        ]
        return -(wanted[-len(logits) :] * logits.float().log_softmax(-1)).sum(-1).mean()

    new_input, new_head, changed = _minimise(
        loss,
        [rows.input, rows.head, rows.changed_head],
        [embedding.weight, head.weight, head.weight],
        len(passages),
        DISTILLING_EPOCHS,
        "Distilling rows",
    )
    return NewRows(new_input, new_head, rows.changed, changed)


def _minimise(
    loss: Callable[..., Tensor],
    initial: Sequence[Tensor],
    matrices: Sequence[Tensor],
    passages: int,
    epochs: int,
    description: str,
) -> list[Tensor]:
    """Return rows that lower the mean of ``loss(passage, *rows)``, by Adam with falling steps.

    Parameters
    ----------
    matrices : sequence of Tensor
        The matrix that each of `initial` joins; the size of its entries sets that of the steps.
    """
    rows = [part.float().clone().requires_grad_() for part in initial]
    groups = [
        {"params": [part], "lr": STEP * float(matrix.float().square().mean().sqrt())}
        for part, matrix in zip(rows, matrices, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, betas=MOMENTA)
    steps = epochs * passages
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for step in track(range(steps), description, steps):
        with repeatable(matrices[0].device):
            value = loss(step % passages, *rows)
        found = loss_gradients(value, rows, matrices[0].dtype)
        for part, gradient in zip(rows, found, strict=True):
            part.grad = gradient
        optimizer.step()
        schedule.step()
    return [part.detach() for part in rows]


def _run(model: PreTrainedModel, weights: dict[str, Tensor], ids: Tensor, start: int | None) -> Any:
    """Return what the model says of one text, int64 of shape [tokens], with other `weights`."""
    text = with_start(ids, start)[None].to(module_device(model.get_input_embeddings()))
    arguments = {"input_ids": text, "use_cache": False, **positions_of(model, text)}
    return functional_call(model, weights, (), arguments, tie_weights=False)


def _weight_name(model: PreTrainedModel, module: nn.Module) -> str:
    return next(f"{name}.weight" for name, part in model.named_modules() if part is module)
