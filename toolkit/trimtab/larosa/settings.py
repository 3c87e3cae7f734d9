"""The configuration of LaRoSA, its values checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from trimtab.errors import ConfigError
from trimtab.larosa.allocation import Allocation
from trimtab.larosa.bases import Basis
from trimtab.larosa.plan import PLAIN, RESIDUAL, TRANSFORM
from trimtab.larosa.precision import Precision
from trimtab.larosa.residual import Share
from trimtab.larosa.selection import Prefill, Selection


class Count(StrEnum):
    """What the requested sparsity is a share of."""

    bytes = "bytes"
    nominal = "nominal"


class Transforms(StrEnum):
    """Which of the sites behind a norm get a transform of their own."""

    auto = "auto"
    all = "all"
    none = "none"


@dataclass
class Settings:
    """The configuration of LaRoSA.

    Parameters
    ----------
    sparsity : float
        Share of the block weights that a token does not read, in [0, 1).
    count : Count
        `bytes` counts what transforms and adapters read against it; `nominal` does not, which is
        the papers' convention.
    basis : Basis
        What makes an axis a principal one, see `metric_for`; `none` rotates nothing.
    transforms : Transforms
        Sites behind a norm that get a d × d transform: `all`, `none`, or (`auto`) those where
        the greedy allocation finds that it pays.
    precision : Precision
        Transforms are stored as `int8`, or in the dtype of the `model`.
    residual : Share
        Which sites share one rotation of the residual stream, absorbed in the weights.
    group : int
        Layers in a group, for ``residual=group``.
    fold_values : bool
        Rotate the values of every KV head, absorbed in the projections around the attention.
    fold_norms : bool
        Weigh every entry by the norm of the weight row behind it, absorbed in norms and gates.
    allocation : Allocation
        `greedy` finds a sparsity for every site of every layer; `alpha` one for h1 and h3 and one
        for the others; `uniform` one for all.
    selection : Selection
        `threshold` keeps what exceeds a magnitude calibrated for each site and layer, so that
        the count varies from token to token; `capped` bounds that count; `topk` keeps exactly
        the same count for every token.
    cap : float
        For ``selection=capped``: the most entries kept, over the average.
    dense_prefix : int
        Leading tokens of a text that drop nothing.
    prefill : Prefill
        Whether the prompt is sparse.
    tokens, window : int
        Calibration tokens, and how many of them make one window of text.
    probe_tokens : int
        How many of them gradients and costs are measured on.
    """

    sparsity: float = 0.4
    count: Count = Count.bytes
    basis: Basis = Basis.fisher_pca
    transforms: Transforms = Transforms.auto
    precision: Precision = Precision.int8
    residual: Share = Share.none
    group: int = 5
    fold_values: bool = True
    fold_norms: bool = False
    allocation: Allocation = Allocation.greedy
    selection: Selection = Selection.threshold
    cap: float = 1.5
    dense_prefix: int = 0
    prefill: Prefill = Prefill.sparse
    tokens: int = 16384
    window: int = 512
    probe_tokens: int = 4096

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, expected: str) -> None:
            if not holds:
                raise ConfigError(f"larosa.{field}", getattr(self, field), f"expected {expected}")

        require(0 <= self.sparsity < 1, "sparsity", "a share in [0, 1)")
        require(self.group >= 1, "group", "at least 1 layer")
        require(1 <= self.cap < math.inf, "cap", "at least 1, and finite")
        require(self.dense_prefix >= 0, "dense_prefix", "at least 0 tokens")
        require(self.window >= 2, "window", "at least 2 tokens")
        require(self.tokens >= self.window, "tokens", "at least one window")
        require(self.probe_tokens >= self.window, "probe_tokens", "at least one window")
        if self.basis is Basis.none:
            rotates = self.residual is not Share.none or self.transforms is Transforms.all
            require(not rotates, "basis", "a basis to rotate to, or residual=none transforms=none")
        require(
            self.allocation is Allocation.greedy or self.transforms is not Transforms.auto,
            "transforms",
            "all or none, unless allocation=greedy chooses",
        )
        require(
            self.residual is not Share.site or self.transforms is not Transforms.none,
            "transforms",
            "all or auto with residual=site, whose MLPs have a rotation of their own",
        )

    @property
    def counts_transforms(self) -> bool:
        return self.count is Count.bytes

    @property
    def uses_gradients(self) -> bool:
        """Whether sites are compared, or bases found, by what they do to the predictions."""
        return self.basis is Basis.fisher_pca or self.allocation is not Allocation.uniform

    def bases(self) -> list[str]:
        """Return the bases allowed at a site behind a norm, those that cost nothing first."""
        free = PLAIN if self.residual is Share.none else RESIDUAL
        if self.transforms is Transforms.none or self.basis is Basis.none:
            return [free]
        return [TRANSFORM] if self.transforms is Transforms.all else [free, TRANSFORM]
