"""The state a model has to be in to be measured or changed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from trimtab.models.changes import undone_in_order


@undone_in_order
def inferring(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode and without gradients for the time of the ``with``.

    Every module gets its own mode back afterwards, and every parameter its own flag.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, needed in flags:
            parameter.requires_grad_(needed)
