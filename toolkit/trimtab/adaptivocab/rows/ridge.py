"""Ridge regression on features of different scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ridge:
    """An affine map of features, each first scaled to mean 0 and variance 1.

    Parameters
    ----------
    center, spread : Tensor
        Of the features, of shape [features].
    weight : Tensor
        Of shape [features, width].
    offset : Tensor
        Of shape [width].
    """

    center: Tensor
    spread: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def fits(
        cls, features: Tensor, rows: Tensor, penalties: Sequence[float]
    ) -> Iterator[tuple[float, Ridge]]:
        """Yield every penalty with the map that minimises mean square error plus penalty.

        Parameters
        ----------
        features : Tensor
            Of shape [examples, features].
        rows : Tensor
            What to map them to, of shape [examples, width].
        """
        tiny = torch.finfo(torch.float32).tiny
        center, spread = features.mean(0), features.std(0).clamp_min(tiny)
        offset = rows.mean(0)
        scaled = (features - center) / spread
        gram, cross = (scaled.T @ other / len(scaled) for other in (scaled, rows - offset))
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        for penalty in penalties:
            factor = torch.linalg.cholesky(gram + penalty * identity)
            yield penalty, cls(center, spread, torch.cholesky_solve(cross, factor), offset)

    def __call__(self, features: Tensor) -> Tensor:
        return ((features - self.center) / self.spread) @ self.weight + self.offset
