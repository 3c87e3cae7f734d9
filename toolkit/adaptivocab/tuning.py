"""New rows by gradient: nothing but these rows changes, and the base model is the only teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from toolkit.adaptivocab.extended import NewRows, extended_head
from toolkit.adaptivocab.passages import Passage
from toolkit.adaptivocab.teacher import Reading, Targets, expected
from toolkit.models.adapter import adapter_for, module_device
from toolkit.progress import track

MATCHED_LAYERS = 4
MATCHING_EPOCHS = 3
DISTILLING_EPOCHS = 2
STEP = 0.015  # of Adam, over the root mean square of the matrix's entries
MOMENTA = (0.9, 0.99)


def match_hidden(
    model: PreTrainedModel, rows: Tensor, passages: Sequence[Passage], start: int | None
) -> Tensor:
    """Return input rows behind which hidden states come closest to the base model's.

    Minimises the squared distance, over the base's squared norm, between what layer
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
        return _output_of(layer, model, ids, start, {_weight_name(model, embedding): weight})

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
    readings: Sequence[Reading],
    targets: Targets,
    start: int | None,
) -> NewRows:
    """Return rows with which the extended model predicts what the base model would.

    Minimises the cross-entropy to the base model's distribution over base tokens, with that of
    first pieces divided as `Targets` says. All rows of `rows` move, and nothing else.

    Parameters
    ----------
    readings : sequence of Reading
        The base model's, of the passages' base tokens.
    """
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    names = [_weight_name(model, module) for module in (embedding, head)]
    firsts = targets.trie.firsts.to(head.weight.device)
    begins = [0, *torch.tensor([len(part.merged) for part in passages]).cumsum(0).tolist()]

    def loss(number: int, new_input: Tensor, new_head: Tensor, changed: Tensor) -> Tensor:
        passage, reading = passages[number], readings[number]
        with torch.no_grad():
            base = expected(model, reading.hidden[passage.starts]).softmax(-1)
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
        ids = _with_start(model, passage.merged, start)
        logits = functional_call(
            model, weights, (), {"input_ids": ids, "use_cache": False}, tie_weights=False
        ).logits[0, -len(passage.merged) - 1 : -1]
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
        The matrix that each of `initial` joins; its entries' size sets the steps'.
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
        gradients = torch.autograd.grad(loss(step % passages, *rows), rows)
        for part, gradient in zip(rows, gradients, strict=True):
            part.grad = gradient
        optimizer.step()
        schedule.step()
    return [part.detach() for part in rows]


class _Reached(Exception):  # noqa: N818
    """The layer has run: the rest of the model is not needed."""


def _output_of(
    layer: nn.Module,
    model: PreTrainedModel,
    ids: Tensor,
    start: int | None,
    weights: dict[str, Tensor],
) -> Tensor:
    """Return what `layer` makes of token ids, of shape [tokens, width]."""
    reached: list[Tensor] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        reached.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    with _hooked(layer, stop):
        try:
            arguments = {"input_ids": _with_start(model, ids, start), "use_cache": False}
            functional_call(model, weights, (), arguments, tie_weights=False)
        except _Reached:
            pass
    return reached[0][0, -len(ids) :]


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _with_start(model: PreTrainedModel, ids: Tensor, start: int | None) -> Tensor:
    """Return a batch of one text, on the device of the model's embedding."""
    text = ids if start is None else torch.cat([ids.new_tensor([start]), ids])
    return text[None].to(module_device(model.get_input_embeddings()))


def _weight_name(model: PreTrainedModel, module: nn.Module) -> str:
    return next(f"{name}.weight" for name, part in model.named_modules() if part is module)
