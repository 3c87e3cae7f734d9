"""What stands in a model while LaRoSA is applied, in place of its norms and linear layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab_kernels.sparse_linear import int8_linear, sparse_linear

Keep = Callable[[Tensor], Tensor]


class SparseLinear(nn.Module):
    """A linear layer that stores its weight input-major and skips the rows behind zeros.

    Parameters
    ----------
    weight : Tensor
        Of shape [inputs, outputs].
    bias : Tensor or None
        Of shape [outputs].
    selector : callable or None
        Chooses among the inputs, where they have not been chosen before.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, selector: Keep | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.selector = selector

    def forward(self, x: Tensor) -> Tensor:
        """Return the product for activations of shape [..., inputs]."""
        selected = x if self.selector is None else self.selector(x)
        return sparse_linear(selected, self.weight, self.bias)


class SparseNorm(nn.Module):
    """A norm whose output is transformed and selected for all the linear layers that read it.

    Parameters
    ----------
    norm : Module
    transform, scale : Tensor or None
        T of shape [d, d], in the model's dtype, or int8 with the scale of its columns, float32 of
        shape [d].
    selector : callable
        Zeroes what is dropped.
    """

    def __init__(
        self, norm: nn.Module, transform: Tensor | None, scale: Tensor | None, selector: Keep
    ) -> None:
        super().__init__()
        self.norm = norm
        self.transform, self.scale = (
            None if part is None else nn.Parameter(part, requires_grad=False)
            for part in (transform, scale)
        )
        self.selector = selector

    @property
    def transform_bytes(self) -> int:
        """Bytes of the transform."""
        return sum(part.nbytes for part in (self.transform, self.scale) if part is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected activations, of shape [..., d]."""
        z = self.norm(x)
        if self.transform is None:
            return self.selector(z)
        if self.scale is None:
            return self.selector(z @ self.transform)
        return self.selector(int8_linear(z, self.transform, self.scale))


@contextmanager
def replaced(parent: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Have `module` stand for the submodule `name`, whose parameters leave memory meanwhile.

    They wait in an unnamed temporary file and come back bit for bit.
    """
    original = parent.get_submodule(name)
    with tempfile.TemporaryFile() as file:
        parameters = list(original.parameters())
        shapes = [parameter.shape for parameter in parameters]
        for parameter in parameters:
            _bytes_of(parameter.data.cpu()).tofile(file)
            parameter.data = parameter.new_empty(0)
        parent.set_submodule(name, module)
        try:
            yield
        finally:
            parent.set_submodule(name, original)
            file.seek(0)
            for parameter, shape in zip(parameters, shapes, strict=True):
                loaded = torch.empty(shape, dtype=parameter.dtype)
                read = np.fromfile(file, dtype=np.uint8, count=loaded.nbytes)
                _bytes_of(loaded)[:] = read.reshape(-1)
                parameter.data = loaded.to(parameter.device)


def _bytes_of(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    flat = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return cast("np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", flat)
